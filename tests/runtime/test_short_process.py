"""Processes for one piece of work: what they answer, and that none outlives its purpose."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mini_claude.errors import InvalidRequest
from mini_claude.runtime.short_process import ShortProcessEnded, run_short
from mini_claude.training.inspection import InspectionRequest


def children() -> list[psutil.Process]:
    own = psutil.Process().children(recursive=True)
    return [child for child in own if "short_process" in " ".join(child.cmdline())]


@pytest.fixture
def slow(tmp_path: Path) -> InspectionRequest:
    """A file that nobody ever finishes reading."""
    path = tmp_path / "fifo.jsonl"
    os.mkfifo(path)
    return InspectionRequest(str(path))


async def started() -> psutil.Process:
    while not (found := children()):
        await asyncio.sleep(0.01)
    return found[0]


async def test_the_answer_is_what_the_program_returns(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("One.\nTwo.\n\0\n")
    answer = json.loads(await run_short("inspect", InspectionRequest(str(path)), 30))
    assert (answer["format"], answer["num_rows"], answer["num_broken"]) == ("text", 3, 1)
    assert answer["problems"] == [{"row": 3, "line": 3, "reason": "'text' holds a NUL character"}]
    assert children() == []


async def test_an_error_of_ours_comes_back_as_it_was_raised(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_text("One.")
    with pytest.raises(InvalidRequest) as caught:
        await run_short("inspect", InspectionRequest(str(path)), 30)
    assert caught.value.code == "unknown_dataset_format"
    assert caught.value.param == "file"


async def test_a_bug_is_told_without_its_message(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ShortProcessEnded):
        await run_short("inspect", InspectionRequest("/nowhere/secret-name"), 30)
    said = capfd.readouterr().err
    assert "FileNotFoundError" in said
    assert "secret-name" not in said


async def test_it_is_killed_when_its_time_is_over(slow: InspectionRequest) -> None:
    with pytest.raises(ShortProcessEnded, match="longer than"):
        await run_short("inspect", slow, 1.0)
    assert children() == []


async def test_it_is_killed_when_nobody_waits_for_it_any_more(slow: InspectionRequest) -> None:
    task = asyncio.create_task(run_short("inspect", slow, 60))
    process = await started()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not process.is_running()


async def test_a_crash_is_an_error_with_a_reason(slow: InspectionRequest) -> None:
    task = asyncio.create_task(run_short("inspect", slow, 60))
    (await started()).send_signal(signal.SIGSEGV)
    with pytest.raises(ShortProcessEnded, match="crashed"):
        await task


def test_it_ends_with_its_parent(slow: InspectionRequest) -> None:
    code = (
        "import asyncio, sys; from mini_claude.runtime.short_process import run_short\n"
        "from mini_claude.training.inspection import InspectionRequest\n"
        "asyncio.run(run_short('inspect', InspectionRequest(sys.argv[1]), 60))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, slow.path])
    try:
        own = psutil.Process(parent.pid)
        while not (found := own.children()):
            assert parent.poll() is None
        while "short_process" not in " ".join(found[0].cmdline()):
            pass
    finally:
        parent.kill()
        parent.wait()
    _, alive = psutil.wait_procs(found, timeout=10)
    assert alive == []


async def test_a_file_that_unpacks_to_far_too_much_ends_its_reader_only(tmp_path: Path) -> None:
    path = tmp_path / "bomb.parquet"
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 64), pa.array(["x" * 40_000_000]))
    pq.write_table(pa.table({"text": texts}), path, compression="zstd")
    assert path.stat().st_size < 100_000
    with pytest.raises((InvalidRequest, ShortProcessEnded)):
        await run_short("inspect", InspectionRequest(str(path)), 120)
