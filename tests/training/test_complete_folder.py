"""Files and folders that are complete or not there at all."""

from pathlib import Path

import pytest

from mini_claude.errors import Conflict, StorageError
from mini_claude.training.complete_folder import complete_file, complete_folder


def test_a_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    with complete_folder(target) as part:
        (part / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_a_folder_whose_block_fails_never_was(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), complete_folder(tmp_path / "target") as part:
        (part / "a").write_text("1")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".target.part").mkdir()
    (tmp_path / ".target.part" / "old").write_text("half")
    with complete_folder(tmp_path / "target") as part:
        (part / "new").write_text("1")
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["new"]


def test_an_existing_folder_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "a").write_text("1")
    with pytest.raises(Conflict), complete_folder(tmp_path / "target"):
        pytest.fail("the block must not run")
    assert (tmp_path / "target" / "a").read_text() == "1"


def test_a_file_takes_the_place_of_the_old_one_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(StorageError) as caught, complete_file(target) as part:
        part.write_text("ne")
        raise OSError(28, "No space left on device")
    assert caught.value.code == "disk_full"
    assert target.read_text() == "old"
    with complete_file(target) as part:
        part.write_text("new")
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_other_faults_of_the_disk_are_told_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Input/output error") as caught, complete_folder(tmp_path / "target"):
        raise OSError(5, "Input/output error")
    assert caught.value.code == "storage_error"
