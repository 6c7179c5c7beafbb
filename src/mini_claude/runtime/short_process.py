"""A process for one piece of work that no API worker should do itself: it needs torch, much memory, or all of a core.

    python -m mini_claude.runtime.short_process NAME     request as a line of JSON in, result as JSON out

It ends when its work is done, its time is over, whoever asked no longer waits, or the parent is gone.
"""

import asyncio
import contextlib
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import psutil

from mini_claude.errors import ErrorInfo, InternalError, MiniClaudeError, Overloaded, StorageError, from_info
from mini_claude.runtime.liveness import end_with_parent
from mini_claude.runtime.messages import Struct
from mini_claude.utils.files import is_full
from mini_claude.utils.priority import lower_priority

MEMORY_BYTES: Final = 2 << 30  # of address space; files can unpack to a thousand times their size
_NICE: Final = 5  # whoever waits for a reply goes first
_CRASHED: Final = 1  # exit code of a process that failed as nobody foresaw
_FAILED: Final = 3  # exit code of a process that reports an error of ours


class Failure(Struct, frozen=True):
    """An error as the process reports it."""

    kind: str
    error: ErrorInfo


class ShortProcessEnded(InternalError):
    """The process came to an end without an answer: out of memory, out of time or crashed."""

    default_code = "process_ended"


class ShortProcessKilled(ShortProcessEnded):
    """Something else than its work ended it, mostly a system short of memory: to try again can help."""


async def run_short(name: str, request: object, seconds: float) -> bytes:
    """The JSON that the program of that name answers with.

    Raises what the program raised, and `ShortProcessEnded` or `ShortProcessKilled` with what happened to it.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mini_claude.runtime.short_process", name),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(seconds):
            with contextlib.suppress(ConnectionError):  # then its exit code says more
                process.stdin.write(msgspec.json.encode(request) + b"\n")
                await process.stdin.drain()
            answer = await process.stdout.read()  # its end of standard input stays open: that is how it notices ours
            code = await process.wait()
    except TimeoutError as error:
        raise ShortProcessEnded(f"it took longer than {seconds:.0f} s") from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        process.stdin.close()
    if code == _FAILED:
        failure = msgspec.json.decode(answer, type=Failure)
        raise from_info(failure.error, failure.kind)
    if code in (-signal.SIGKILL, -signal.SIGTERM):
        raise ShortProcessKilled("it was killed, mostly a sign of too little memory")
    if code != 0:
        raise ShortProcessEnded("it needs too much memory, or the program that reads it crashed")
    return answer


def limit_memory() -> None:
    """From here on this process gets MEMORY_BYTES more, for reading a stranger's file."""
    limit = MEMORY_BYTES + psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class ShortWork:
    """One short process at a time for one kind of work; of those who ask meanwhile, a bounded number waits."""

    def __init__(self, max_waiting: int) -> None:
        self._turn = asyncio.Lock()
        self._max_waiting = max_waiting
        self._num_waiting = 0

    async def run(self, name: str, request: object, seconds: float) -> bytes:
        """As `run_short`, and `Overloaded`."""
        if self._num_waiting >= self._max_waiting:
            raise Overloaded("Too much work of this kind is waiting already: try again soon.", retry_after=5.0)
        self._num_waiting += 1
        try:
            async with self._turn:
                return await run_short(name, request, seconds)
        finally:
            self._num_waiting -= 1


def _inspect(request: Any) -> object:
    from mini_claude.training.inspection import InspectionRequest, inspect

    limit_memory()
    return inspect(msgspec.convert(request, InspectionRequest))


def _prompts(request: Any) -> object:
    from mini_claude.training.prompts import PromptsRequest, prompts

    limit_memory()
    return prompts(msgspec.convert(request, PromptsRequest))


def _examine(request: Any) -> object:
    from mini_claude.training.doctor import examine
    from mini_claude.training.doctor_report import DoctorRequest

    return examine(msgspec.convert(request, DoctorRequest))


def _import_adapter(request: Any) -> object:
    from mini_claude.runtime.adapter_requests import ImportRequest
    from mini_claude.runtime.adapter_work import take_in

    return take_in(msgspec.convert(request, ImportRequest))


def _export_adapter(request: Any) -> object:
    from mini_claude.runtime.adapter_requests import ExportRequest
    from mini_claude.runtime.adapter_work import write_out

    write_out(msgspec.convert(request, ExportRequest))
    return None


def _unpack(request: Any) -> object:
    from mini_claude.runtime.adapter_requests import Base
    from mini_claude.runtime.adapter_work import base_folder

    base_folder(msgspec.convert(request, Base))
    return None


def _quantize(request: Any) -> object:
    from mini_claude.runtime.adapter_requests import QuantizeRequest
    from mini_claude.runtime.adapter_work import quantize

    quantize(msgspec.convert(request, QuantizeRequest))
    return None


def _verify_adapter(request: Any) -> object:
    from mini_claude.runtime.adapter_requests import VerifyRequest
    from mini_claude.runtime.adapter_work import verify

    return verify(msgspec.convert(request, VerifyRequest))


_PROGRAMS: Final[Mapping[str, Callable[[Any], object]]] = {
    "inspect": _inspect,
    "prompts": _prompts,
    "doctor": _examine,
    "import_adapter": _import_adapter,
    "export_adapter": _export_adapter,
    "unpack": _unpack,
    "quantize": _quantize,
    "verify_adapter": _verify_adapter,
}


def _answer(name: str, request: Any) -> tuple[int, bytes]:
    """Exit code and what to write."""
    try:
        return 0, msgspec.json.encode(_PROGRAMS[name](request))
    except MiniClaudeError as error:
        return _FAILED, msgspec.json.encode(Failure(type(error).__name__, error.info()))
    except Exception as error:
        if isinstance(error, OSError) and is_full(error):
            full = StorageError("The disk is full; free some space and try again, nothing is lost.", code="disk_full")
            return _FAILED, msgspec.json.encode(Failure(type(full).__name__, full.info()))
        # Its message may quote the data, so only the places are shown.
        sys.stderr.writelines([f"{type(error).__name__} in\n", *traceback.format_tb(error.__traceback__)])
        sys.stderr.flush()
        return _CRASHED, b""


def main() -> None:
    """Entry point of the process."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print what they like
        request = json.loads(sys.stdin.buffer.readline())
        end_with_parent(lambda: os._exit(1))
        lower_priority(_NICE)
        code, answer = _answer(sys.argv[1], request)
        out.write(answer)
    os._exit(code)  # at once: native threads of the libraries would be waited for


if __name__ == "__main__":
    main()
