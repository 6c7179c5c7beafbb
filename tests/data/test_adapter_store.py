"""Folders of imported adapters: complete or not there, within the quota, and nothing is left of what went wrong."""

import errno
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mini_claude.data.adapter_store import AdapterStore, IncomingAdapter, IncomingFile
from mini_claude.errors import NotFound, PayloadTooLarge, StorageError

FILES = {"config": IncomingFile("config.json", 10), "weights": IncomingFile("weights.bin", 1000)}


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "adapters", quota_bytes=2000)


def received(store: AdapterStore, size: int = 100) -> IncomingAdapter:
    """An adapter that has come in and was checked."""
    incoming = store.begin(FILES)
    try:
        incoming.write("config", b"{}")
        incoming.write("weights", b"x" * size)
        incoming.folder.rename(incoming.checked_folder)
    except StorageError:
        incoming.discard()
        raise
    return incoming


def keep(store: AdapterStore, registered: set[str], size: int = 100) -> str:
    incoming = received(store, size)
    try:
        with store.kept(incoming, lambda: registered) as name:
            registered.add(name)
            return name
    finally:
        incoming.discard()


def left(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "adapters").iterdir()} - {".lock"}


def test_what_was_kept_is_found_under_its_name_until_it_is_removed(store: AdapterStore, tmp_path: Path) -> None:
    name = keep(store, set())
    assert {path.name for path in store.path(name).iterdir()} == {"config.json", "weights.bin"}
    assert left(tmp_path) == {name}
    store.remove(name)
    store.remove(name)
    assert left(tmp_path) == set()
    with pytest.raises(NotFound):
        store.path(name)


def test_a_block_that_raises_takes_the_folder_back(store: AdapterStore, tmp_path: Path) -> None:
    incoming = received(store)
    with pytest.raises(StorageError), store.kept(incoming, set):
        raise StorageError("The database is full.")
    incoming.discard()
    assert left(tmp_path) == set()


def test_what_nobody_registered_goes_with_the_next_import_and_trained_adapters_stay(
    store: AdapterStore, tmp_path: Path
) -> None:
    orphan = keep(store, set())
    (tmp_path / "adapters" / "job_1").mkdir()
    registered: set[str] = set()
    name = keep(store, registered)
    assert left(tmp_path) == {name, "job_1"}
    assert orphan != name


def test_a_file_has_its_own_limit(store: AdapterStore) -> None:
    incoming = store.begin(FILES)
    incoming.write("config", b"x" * 10)
    for part, data in (("config", b"x"), ("weights", b"x" * 1001)):
        with pytest.raises(PayloadTooLarge) as caught:
            incoming.write(part, data)
        assert caught.value.param == part
    incoming.discard()


def test_the_quota_counts_imported_adapters(store: AdapterStore, tmp_path: Path) -> None:
    registered: set[str] = set()
    keep(store, registered, 900)
    keep(store, registered, 900)
    store.check_quota(100)
    with pytest.raises(PayloadTooLarge) as caught:
        keep(store, registered, 900)
    assert caught.value.code == "adapter_quota_exceeded"
    assert left(tmp_path) == registered
    store.remove(registered.pop())
    keep(store, registered, 900)


@pytest.mark.parametrize("call", ["mkdir", "touch", "open", "rename"])
def test_a_full_disk_is_told_and_leaves_nothing(
    store: AdapterStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    keep(store, set())

    def full(*_: object, **__: object) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    registered: set[str] = set()
    incoming = received(store) if call == "rename" else None
    with monkeypatch.context() as patch:
        patch.setattr(Path, call, full)
        with pytest.raises(StorageError) as caught:
            if incoming is None:
                received(store)
            else:
                with store.kept(incoming, lambda: registered):
                    pass
    assert caught.value.code == "disk_full"
    if incoming is not None:
        incoming.discard()
    keep(store, registered)
    assert left(tmp_path) == registered


def test_what_a_killed_process_left_goes_with_the_next_scratch_folder(store: AdapterStore, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mini_claude.data.adapter_store import AdapterStore\n"
        "scratch = AdapterStore(Path(sys.argv[1]), 100).scratch(); (scratch.path / 'half').write_text('half')\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "adapters")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        store.scratch().discard()
        assert len(left(tmp_path)) == 1
        child.send_signal(signal.SIGKILL)
        child.wait()
    store.scratch().discard()
    assert left(tmp_path) == set()
