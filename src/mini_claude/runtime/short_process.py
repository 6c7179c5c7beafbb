"""A process for one piece of work that no API worker should do itself: it needs torch, much memory, or all of a core.

    python -m mini_claude.runtime.short_process NAME     request as a line of JSON in, result as JSON out

It ends when its work is done, its time is over, whoever asked no longer waits, or the parent is gone.
"""

import asyncio
import contextlib
import json
import os
import resource
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from mini_claude.errors import ErrorInfo, InternalError, MiniClaudeError, from_info
from mini_claude.runtime.liveness import end_with_parent
from mini_claude.runtime.messages import Struct

MEMORY_BYTES: Final = 2 << 30  # of address space; Parquet can unpack to a thousand times its size
_NICE: Final = 5  # whoever waits for a reply goes first
_FAILED: Final = 3  # exit code of a process that reports an error of ours


class Failure(Struct, frozen=True):
    """An error as the process reports it."""

    kind: str
    error: ErrorInfo


class ShortProcessEnded(InternalError):
    """The process came to an end without an answer: out of memory, out of time or crashed."""

    default_code = "process_ended"


async def run_short(name: str, request: object, seconds: float) -> bytes:
    """The JSON that the program of that name answers with.

    Raises what the program raised, and `ShortProcessEnded` with what happened to it.
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
    if code != 0:
        raise ShortProcessEnded("it needs too much memory, or the program that reads it crashed")
    return answer


def _inspect(request: Any) -> object:
    from mini_claude.training.inspection import InspectionRequest, inspect

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    return inspect(msgspec.convert(request, InspectionRequest))


def _examine(request: Any) -> object:
    from mini_claude.training.doctor import examine
    from mini_claude.training.doctor_report import DoctorRequest

    return examine(msgspec.convert(request, DoctorRequest))


_PROGRAMS: Final[Mapping[str, Callable[[Any], object]]] = {"inspect": _inspect, "doctor": _examine}


def main() -> None:
    """Entry point of the process."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print what they like
        request = json.loads(sys.stdin.buffer.readline())
        end_with_parent(lambda: os._exit(1))
        os.nice(_NICE)
        code = 0
        try:
            answer = msgspec.json.encode(_PROGRAMS[sys.argv[1]](request))
        except MiniClaudeError as error:
            code, answer = _FAILED, msgspec.json.encode(Failure(type(error).__name__, error.info()))
        except Exception as error:  # its message may quote the data, so only the places are shown
            sys.stderr.writelines([f"{type(error).__name__} in\n", *traceback.format_tb(error.__traceback__)])
            sys.stderr.flush()
            os._exit(1)
        out.write(answer)
    os._exit(code)  # at once: native threads of the libraries would be waited for


if __name__ == "__main__":
    main()
