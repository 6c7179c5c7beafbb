"""Work of minutes that a visitor began (an export, a verification): it goes on whether or not somebody watches.

An errand lives as long as the page's process. What it changed is in the database; a file that it made is for a day.
"""

import asyncio
import secrets
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mini_claude.errors import MiniClaudeError, Overloaded
from mini_claude.services.identity import Caller
from mini_claude.utils.logging import get_logger

log = get_logger(__name__)

MAX_RUNNING: Final = 4  # of one owner
MAX_KEPT: Final = 4  # ended ones of one owner: each may hold a whole model's file


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an errand, as a sentence, and perhaps a file to download."""

    sentence: str
    file: Path | None = None


@dataclass(slots=True)
class Errand:
    """`ended` is None while it runs, then Unix time; it failed where there is an error and no outcome."""

    label: str
    owner: str
    started: float
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    ended: float | None = None
    outcome: Outcome | None = None
    error: str | None = None
    task: asyncio.Task[None] | None = None


class Errands:
    """All visitors' errands, each shown to its owner alone. Belongs to one event loop."""

    def __init__(self) -> None:
        self._errands: list[Errand] = []

    def of(self, caller: Caller) -> Sequence[Errand]:
        """The caller's, newest first."""
        return [errand for errand in reversed(self._errands) if errand.owner == caller.owner]

    def start(self, caller: Caller, label: str, work: Coroutine[Any, Any, Outcome]) -> Errand:
        """Begin it; the oldest ended ones of the caller give way. Raises `Overloaded` where too many run."""
        mine = self.of(caller)
        if sum(errand.ended is None for errand in mine) >= MAX_RUNNING:
            work.close()
            raise Overloaded(f"{MAX_RUNNING} of your tasks are running: wait until one of them is done.")
        for errand in [errand for errand in mine if errand.ended is not None][MAX_KEPT - 1 :]:
            self._forget(errand)
        errand = Errand(label, caller.owner, time.time())
        errand.task = asyncio.create_task(_run(errand, work))
        self._errands.append(errand)
        return errand

    def stop(self, caller: Caller, errand_id: str) -> None:
        """Cancel a running one of the caller's, or forget an ended one with its file; one that is gone is neither."""
        for errand in self.of(caller):
            if errand.id == errand_id and errand.ended is not None:
                self._forget(errand)
            elif errand.id == errand_id and errand.task is not None:
                errand.task.cancel()

    def _forget(self, errand: Errand) -> None:
        self._errands.remove(errand)
        if errand.outcome is not None and errand.outcome.file is not None:
            errand.outcome.file.unlink(missing_ok=True)


async def _run(errand: Errand, work: Coroutine[Any, Any, Outcome]) -> None:
    try:
        errand.outcome = await work
    except asyncio.CancelledError:
        errand.error = "Stopped."
    except MiniClaudeError as error:
        errand.error = error.message
    except Exception as error:
        log.exception("page.errand_failed", error_class=type(error).__name__)
        errand.error = "Something went wrong; the server's log says what."
    finally:
        errand.ended = time.time()
