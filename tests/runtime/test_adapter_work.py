"""What a full disk does to an export, an import and a verification: it is said, nothing is left, and it works later."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from mini_claude.errors import StorageError, from_info
from mini_claude.runtime.adapter_requests import SUFFIXES, Base, ExportFormat, ExportRequest, ImportRequest
from mini_claude.runtime.adapter_work import take_in, write_out
from mini_claude.runtime.short_process import Failure, _answer
from mini_claude.types import ModelSource, ModelSpec

from ..training.faulty_disk import FaultyDisk
from ..training.tiny_adapters import save_adapter, save_base
from ..training.tiny_gguf import save_gguf


class Work:
    """A tiny model, an adapter for it, and an empty folder for what comes out."""

    def __init__(self, folder: Path) -> None:
        base = save_base(folder / "tiny")
        save_gguf(base, folder / "tiny.gguf")
        spec = ModelSpec("tiny", "causal_lm", (ModelSource("folder", str(base)),))
        self.base = Base(spec, str(folder / "models"))
        self.adapter = save_adapter(base, folder / "adapter")
        self.out = folder / "out"
        self.out.mkdir()

    def fails_cleanly_on_a_disk_without_room(self, work: Callable[[], object], patch: pytest.MonkeyPatch) -> None:
        with patch.context() as undisturbed:
            total = self._count(work, undisturbed)
        for fails_at in range(1, total + 1):
            with patch.context() as faulty:
                FaultyDisk(faulty, self.out, fails_at)
                with pytest.raises(StorageError) as caught:
                    work()
            assert caught.value.code == "disk_full"
            # The last operation brings the folder's list of names to the disk: then what was made is there already.
            assert fails_at == total or not list(self.out.iterdir())
            self.clear()
        work()
        assert list(self.out.iterdir())

    def _count(self, work: Callable[[], object], patch: pytest.MonkeyPatch) -> int:
        disk = FaultyDisk(patch, self.out, None)
        work()
        self.clear()
        assert disk.num_operations > 2
        return disk.num_operations

    def clear(self) -> None:
        for path in sorted(self.out.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


@pytest.mark.parametrize("wanted", ["peft", "merged", "gguf", "gguf-merged"])
def test_an_export_finds_no_room_at_any_step(work: Work, wanted: ExportFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    target = work.out / f"export{SUFFIXES[wanted]}"
    request = ExportRequest(work.base, str(work.adapter), str(target), wanted, "f16", "tiny-bot-1")
    work.fails_cleanly_on_a_disk_without_room(lambda: write_out(request), monkeypatch)


def test_an_import_finds_no_room_at_any_step(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mini_claude.runtime.adapter_work.limit_memory", lambda: None)  # of this process, for good
    request = ImportRequest(work.base, str(work.adapter), str(work.out / "kept"), allow_dora=False)
    work.fails_cleanly_on_a_disk_without_room(lambda: take_in(request), monkeypatch)


def test_a_process_that_finds_no_room_where_nobody_thought_of_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_request: object) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mini_claude.runtime.short_process._PROGRAMS", {"verify_adapter": full})
    code, answer = _answer("verify_adapter", {})
    failure = msgspec.json.decode(answer, type=Failure)
    error = from_info(failure.error, failure.kind)
    assert code == 3
    assert isinstance(error, StorageError)
    assert error.code == "disk_full"
