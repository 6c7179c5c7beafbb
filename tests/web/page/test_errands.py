"""Work that goes on without anybody watching, and who sees it."""

import asyncio
from pathlib import Path

import pytest

from mini_claude.errors import Conflict, Overloaded
from mini_claude.services.identity import LOCAL, Caller
from mini_claude.web.page.errand_list import files_of, items_of
from mini_claude.web.page.errands import MAX_KEPT, MAX_RUNNING, Errand, Errands, Outcome

OTHER = Caller("0" * 32, "0" * 32)


async def until_ended(errand: Errand) -> None:
    assert errand.task is not None
    await asyncio.wait({errand.task}, timeout=5)
    assert errand.ended is not None


async def made(path: Path | None = None) -> Outcome:
    return Outcome("Done.", path)


async def broken(error: Exception) -> Outcome:
    raise error


async def test_what_came_of_it_is_shown_to_its_owner_alone(tmp_path: Path) -> None:
    errands = Errands()
    errand = errands.start(LOCAL, "Export", made(tmp_path / "file.zip"))
    (item,) = items_of(errands.of(LOCAL), errand.started + 25)
    assert (item["state"], item["action"]) == ("running for 20 s", "Stop")
    await until_ended(errand)
    (item,) = items_of(errands.of(LOCAL), errand.started)
    assert (item["words"], item["tone"], item["action"]) == ("Done.", "good", "Remove")
    assert files_of(errands.of(LOCAL)) == [str(tmp_path / "file.zip")]
    assert errands.of(OTHER) == []


@pytest.mark.parametrize(
    ("error", "words"), [(Conflict("It is gone."), "It is gone."), (ValueError("secret"), "Something went wrong")]
)
async def test_a_failure_is_told_in_our_own_words(error: Exception, words: str) -> None:
    errands = Errands()
    await until_ended(errands.start(LOCAL, "Export", broken(error)))
    (item,) = items_of(errands.of(LOCAL), 0)
    assert item["words"].startswith(words)
    assert (item["tone"], item["state"]) == ("bad", "failed")


async def test_only_its_owner_stops_it() -> None:
    errands, forever = Errands(), asyncio.Event()

    async def wait() -> Outcome:
        await forever.wait()
        return Outcome("Never.")

    errand = errands.start(LOCAL, "Export", wait())
    errands.stop(OTHER, errand.id)
    await asyncio.sleep(0)
    assert errand.ended is None
    errands.stop(LOCAL, errand.id)
    await until_ended(errand)
    assert errand.error == "Stopped."


async def test_so_many_run_at_once_and_the_oldest_ended_ones_go_with_their_files(tmp_path: Path) -> None:
    errands, gate = Errands(), asyncio.Event()

    async def wait(path: Path) -> Outcome:
        await gate.wait()
        return Outcome("Done.", path)

    paths = [tmp_path / str(number) for number in range(MAX_RUNNING)]
    for path in paths:
        path.touch()
    running = [errands.start(LOCAL, "Export", wait(path)) for path in paths]
    with pytest.raises(Overloaded):
        errands.start(LOCAL, "Export", made())
    errands.start(OTHER, "Export", made())
    gate.set()
    for errand in running:
        await until_ended(errand)
    await until_ended(errands.start(LOCAL, "Export", made()))
    assert [path.exists() for path in paths] == [False] + [True] * (MAX_KEPT - 1)
    errands.stop(LOCAL, running[-1].id)
    assert not paths[-1].exists()
    assert running[-1] not in errands.of(LOCAL)
