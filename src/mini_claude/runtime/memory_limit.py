"""A bound on the memory that training may take, so that a job too large for a machine ends alone.

Without one the kernel ends some process when memory runs out, and not always the one that took it.
"""

import contextlib
import resource
import sys
from collections.abc import Iterator

import psutil

from mini_claude.errors import InvalidRequest


@contextlib.contextmanager
def memory_limit(gigabytes: float) -> Iterator[None]:
    """What runs meanwhile may take so much main memory more than this process has; 0 means without limit, and so does
    any system but Linux. Raises `InvalidRequest` (code "insufficient_memory") where memory is refused, also without a
    limit and by a GPU.
    """
    before = resource.getrlimit(resource.RLIMIT_DATA)
    if gigabytes and sys.platform == "linux":
        limit = psutil.Process().memory_info().data + int(gigabytes * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    except Exception as error:
        if not any(_is_refused_memory(each) for each in _with_causes(error)):
            raise
        allowed = f" than the {gigabytes:g} GB that a job of this server may take" if gigabytes else ""
        raise InvalidRequest(
            f"Training needs more memory{allowed}: use a smaller per_device_train_batch_size or max_length, or "
            "gradient_checkpointing.",
            code="insufficient_memory",
            param="training_args",
        ) from error
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """A model that cannot be loaded, say, because memory was refused."""
    while error is not None:
        yield error
        error = error.__cause__


def _is_refused_memory(error: BaseException) -> bool:
    """Torch has a class of its own for a GPU that is full (a RuntimeError), and none for the machine's memory."""
    text = str(error)
    refused = "allocate memory" in text or "out of memory" in text
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and refused)
