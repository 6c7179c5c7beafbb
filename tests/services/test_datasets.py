"""Datasets from the file that comes in to the name that leads to it."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mini_claude.data.records import Dataset
from mini_claude.errors import Conflict, InvalidRequest, NotFound, Overloaded, PayloadTooLarge, StorageError
from mini_claude.runtime import short_process
from mini_claude.services import datasets
from mini_claude.services.datasets import DatasetService, default_name
from mini_claude.services.identity import LOCAL, Caller
from mini_claude.training.doctor_report import Examination
from mini_claude.utils.config import Settings

from .conftest import ALICE, BOB, OpenWorker, Worker

CONTENT = b'["Hi", "Yo"]\n["Hi"]\n["A", "B"]\n'


@pytest.fixture
def service(worker: Worker) -> DatasetService:
    return worker.services.datasets


async def add(
    service: DatasetService,
    content: bytes = CONTENT,
    file_name: str = "My Data.jsonl",
    name: str | None = None,
    caller: Caller = LOCAL,
) -> tuple[Dataset, bool]:
    async with service.receive(len(content)) as incoming:
        incoming.write(content)
        return await service.add(caller, incoming, file_name, name)


def stored(settings: Settings) -> list[str]:
    return sorted(path.name for path in settings.datasets_dir.rglob("data*"))


async def test_a_file_becomes_a_dataset(service: DatasetService, settings: Settings) -> None:
    dataset, is_new = await add(service)
    assert is_new
    assert (dataset.name, dataset.file_name) == ("my-data", "My Data.jsonl")
    assert (dataset.container, dataset.format) == ("jsonl", "dialogue")
    assert (dataset.num_rows, dataset.num_broken, dataset.num_bytes) == (3, 1, len(CONTENT))
    assert [(problem.row, problem.line) for problem in dataset.problems] == [(2, 2)]
    assert await service.list(LOCAL) == (dataset,)
    assert await service.get(LOCAL, "my-data") == dataset
    assert (settings.datasets_dir / dataset.sha256 / "data.jsonl").read_bytes() == CONTENT
    manifest = json.loads((settings.datasets_dir / dataset.sha256 / "manifest.json").read_bytes())
    assert (manifest["sha256"], manifest["format"]) == (dataset.sha256, "dialogue")


async def test_the_same_again_is_the_same_and_not_read_again(
    service: DatasetService, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = await add(service)

    async def refuse(*_: object) -> bytes:
        raise AssertionError("it is known already")

    monkeypatch.setattr(short_process, "run_short", refuse)
    assert await add(service) == (first, False)
    second, is_new = await add(service, name="other", caller=ALICE)
    assert is_new
    assert replace(second, name=first.name, owner=first.owner, created_at=first.created_at) == first
    assert stored(settings) == ["data.jsonl"]


async def test_another_content_under_the_name_is_a_conflict_and_leaves_nothing(
    service: DatasetService, settings: Settings
) -> None:
    await add(service)
    with pytest.raises(Conflict):
        await add(service, b'["C", "D"]\n')
    with pytest.raises(Conflict):  # the name of another caller, whose content it even is
        await add(service, caller=ALICE)
    assert len(list(settings.datasets_dir.iterdir())) == 2  # .lock is one of them
    assert stored(settings) == ["data.jsonl"]


@pytest.mark.parametrize(
    ("file_name", "name"),
    [
        ("Train Set (v2).JSONL", "train-set-v2"),
        ("C:\\Users\\ada\\data.csv", "data"),
        ("../../etc/passwd", "passwd"),
        (".hidden", "hidden"),
        ("...", "dataset"),
        ("", "dataset"),
        ("日本.jsonl", "dataset"),
        ("x" * 300 + ".txt", "x" * 64),
        ("a\0b.txt", "a-b"),
        ("a.b.c.json", "a.b.c"),
    ],
)
async def test_the_default_name_resembles_the_files(file_name: str, name: str) -> None:
    assert default_name(file_name) == name


@pytest.mark.parametrize("name", ["", ".x", "A", "a/b", "..", "a" * 65, "a\n", "é"])
async def test_a_name_that_cannot_be_one_is_refused(service: DatasetService, settings: Settings, name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await add(service, name=name)
    assert caught.value.param == "name"
    assert stored(settings) == []


async def test_what_is_no_dataset_leaves_nothing(service: DatasetService, settings: Settings) -> None:
    for content in (b"", b"[]", b"[1]", b"\x00" * 100):
        with pytest.raises(InvalidRequest):
            await add(service, content)
    assert stored(settings) == []


async def test_callers_see_their_own_only(service: DatasetService) -> None:
    await add(service, caller=ALICE)
    assert await service.list(BOB) == ()
    with pytest.raises(NotFound):
        await service.get(BOB, "my-data")
    with pytest.raises(NotFound):
        await service.delete(BOB, "my-data")
    with pytest.raises(NotFound):
        await service.preview(BOB, "my-data", None, Examination())


async def test_the_file_goes_with_its_last_name(service: DatasetService, settings: Settings) -> None:
    await add(service)
    await add(service, name="other")
    await service.delete(LOCAL, "my-data")
    assert stored(settings) == ["data.jsonl"]
    await service.delete(LOCAL, "other")
    assert stored(settings) == []
    with pytest.raises(NotFound):
        await service.delete(LOCAL, "other")


async def test_another_worker_sees_what_was_added(open_worker: OpenWorker) -> None:
    one, two = await open_worker(), await open_worker()
    dataset, _ = await add(one.services.datasets)
    assert await two.services.datasets.get(LOCAL, "my-data") == dataset
    assert await add(two.services.datasets) == (dataset, False)


async def test_the_quota_counts_each_content_once(worker: Worker, settings: Settings) -> None:
    limits = settings.model_copy(update={"max_dataset_bytes": 40, "dataset_quota_bytes": 70})
    service = DatasetService(worker.services.datasets._repository, worker.services.models, limits)
    await add(service, name="one")
    for name in ("two", "three"):
        await add(service, name=name, caller=ALICE)
    fits, too_much = (b'["Hi", "' + b"x" * (n - len(CONTENT) - 11) + b'"]\n' for n in (70, 71))
    with pytest.raises(PayloadTooLarge) as caught:
        await add(service, too_much, name="four")
    assert caught.value.code == "dataset_quota_exceeded"
    await add(service, fits, name="four")
    await service.delete(LOCAL, "four")
    with pytest.raises(PayloadTooLarge):
        await add(service, b'["Hi", "' + b"x" * 60 + b'"]\n')
    assert stored(settings) == ["data.jsonl"]


async def test_more_uploads_than_allowed_are_refused_and_later_ones_are_not(service: DatasetService) -> None:
    async with service.receive(), service.receive(), service.receive(), service.receive():
        with pytest.raises(Overloaded):
            async with service.receive():
                pass
    await add(service)


async def test_a_file_that_nobody_can_read_is_the_clients_error(
    service: DatasetService, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "INSPECTION_SECONDS", 0.0)
    with pytest.raises(InvalidRequest, match="cannot be read") as caught:
        await add(service)
    assert caught.value.code == "unreadable_dataset"
    assert stored(settings) == []


async def test_readers_wait_for_their_turn_but_not_too_many(
    service: DatasetService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service._short_work["inspect"], "_max_waiting", 2)
    running = 0
    gate = asyncio.Event()

    async def hold(*_: object) -> bytes:
        nonlocal running
        running += 1
        assert running == 1
        await gate.wait()
        running -= 1
        return b'{"container":"jsonl","format":"dialogue","num_rows":1,"num_broken":0,"problems":[]}'

    monkeypatch.setattr(short_process, "run_short", hold)
    tasks = [asyncio.create_task(add(service, b'["a", "%d"]' % i, name=f"n{i}")) for i in range(3)]
    done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    assert [type(task.exception()) for task in done] == [Overloaded]
    gate.set()
    await asyncio.gather(*waiting)
    assert len(await service.list(LOCAL)) == 2


async def test_a_full_database_leaves_no_file(
    worker: Worker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = worker.services.datasets

    def full(*_: object) -> Any:
        raise StorageError("The disk is full.", code="disk_full")

    monkeypatch.setattr(service._repository, "add", full)
    with pytest.raises(StorageError):
        await add(service)
    assert stored(settings) == []


async def test_an_upload_that_is_given_up_leaves_nothing(service: DatasetService, settings: Settings) -> None:
    with pytest.raises(ConnectionError):
        async with service.receive() as incoming:
            incoming.write(CONTENT)
            raise ConnectionError
    assert stored(settings) == []


async def test_a_preview_tells_what_is_learned(service: DatasetService) -> None:
    await add(service)
    report = await service.preview(LOCAL, "my-data", None, Examination(num_rows=1))
    assert report.model == "smollm2-135m"
    assert (report.num_rows, report.num_examples, report.num_broken) == (3, 2, 1)
    assert "".join(token.text for token in report.samples[0].tokens if token.supervised) == "Yo<|end|>"


async def test_a_preview_of_nothing_says_so(service: DatasetService, tmp_path: Path) -> None:
    await add(service, b'["Hi"]\n')
    with pytest.raises(InvalidRequest) as caught:
        await service.preview(LOCAL, "my-data", None, Examination())
    assert caught.value.code == "no_supervised_tokens"
    with pytest.raises(NotFound):
        await service.preview(LOCAL, "my-data", "no-such-model", Examination())


async def test_a_preview_without_its_file_says_what_to_do(service: DatasetService, settings: Settings) -> None:
    dataset, _ = await add(service)
    (settings.datasets_dir / dataset.sha256 / "manifest.json").unlink()
    with pytest.raises(NotFound, match="upload it again"):
        await service.preview(LOCAL, "my-data", None, Examination())


async def test_a_preview_that_takes_too_long_is_told(service: DatasetService, monkeypatch: pytest.MonkeyPatch) -> None:
    await add(service)
    monkeypatch.setattr(datasets, "EXAMINATION_SECONDS", 0.0)
    with pytest.raises(InvalidRequest) as caught:
        await service.preview(LOCAL, "my-data", None, Examination())
    assert caught.value.code == "examination_failed"
