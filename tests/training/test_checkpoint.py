"""A checkpoint is complete or not there; a damaged one is passed over and told of."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mini_claude.errors import StorageError
from mini_claude.training.checkpoint import Checkpoint, CheckpointStore
from mini_claude.training.tensor_file import write_tensors

from .faulty_disk import FaultyDisk

FILES = ("weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


def checkpoint(step: int, num_elements: int = 10) -> Checkpoint:
    weights = {"a": torch.full((num_elements,), float(step)), "b": torch.ones(2, 3, dtype=torch.bfloat16)}
    optimizer = {"a.step": torch.tensor(float(step)), "a.exp_avg": torch.zeros(num_elements)}
    return Checkpoint(step, weights, optimizer, {"step": step})


def store(folder: Path, keep_last: int = 2, max_bytes: int = 10**9) -> CheckpointStore:
    return CheckpointStore(folder, keep_last=keep_last, max_bytes=max_bytes)


def newest(folder: Path) -> int | None:
    loaded, _ = store(folder).load_newest()
    if loaded is None:
        return None
    assert torch.equal(loaded.weights["a"], checkpoint(loaded.step).weights["a"])
    assert loaded.state["step"] == loaded.step
    return loaded.step


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    saved = checkpoint(7)
    store(tmp_path).save(saved, best_step=None)
    loaded, damaged = store(tmp_path).load_newest()
    assert loaded is not None
    assert damaged == []
    assert loaded.state == saved.state
    for ours, theirs in ((loaded.weights, saved.weights), (loaded.optimizer, saved.optimizer)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)


def test_nothing_is_loaded_where_nothing_is(tmp_path: Path) -> None:
    assert store(tmp_path / "none").load_newest() == (None, [])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_after_any_damage_the_one_before_is_used_and_the_damage_told(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    for step in (1, 2):
        store(tmp_path).save(checkpoint(step), best_step=None)
    damage(tmp_path / "step-00000002" / name)
    loaded, damaged = store(tmp_path).load_newest()
    assert loaded is not None
    assert loaded.step == newest(tmp_path) == 1
    assert [problem.folder.name for problem in damaged] == ["step-00000002"]
    assert "damaged" in damaged[0].reason


def test_no_flipped_byte_goes_unseen(tmp_path: Path) -> None:
    """Wherever it is: what is loaded is the newest as it was written, or the one before."""
    for step in (1, 2):
        store(tmp_path).save(checkpoint(step), best_step=None)
    outcomes = set()
    for name in FILES:
        path = tmp_path / "step-00000002" / name
        data = path.read_bytes()
        for position in range(0, len(data), 5):
            flipped = bytearray(data)
            flipped[position] ^= 1 << position % 8
            path.write_bytes(flipped)
            outcomes.add(newest(tmp_path))
        path.write_bytes(data)
    assert outcomes == {1, 2}  # 2: white space of the manifest, say


def test_a_damaged_checkpoint_is_replaced_when_the_run_comes_by_again(tmp_path: Path) -> None:
    for step in (1, 2):
        store(tmp_path).save(checkpoint(step), best_step=None)
    flip(tmp_path / "step-00000002" / "weights.safetensors")
    store(tmp_path).save(checkpoint(2), best_step=None)
    assert newest(tmp_path) == 2


def test_a_full_disk_at_any_write_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every k: the k-th operation that writes finds no room."""
    fails_at = 0
    codes: set[str] = set()
    while True:
        fails_at += 1
        folder = tmp_path / str(fails_at)
        store(folder).save(checkpoint(1), best_step=None)
        with monkeypatch.context() as patch:
            disk = FaultyDisk(patch, folder, fails_at)
            try:
                store(folder).save(checkpoint(2), best_step=None)
            except StorageError as error:
                codes.add(error.code)
            else:
                break
        assert newest(folder) in (1, 2)  # 2 where only the last flush failed: it was in place already
        store(folder).save(checkpoint(3), best_step=None)
        assert newest(folder) == 3
    assert disk.num_operations == fails_at - 1 > 12
    assert codes == {"disk_full"}


def test_a_half_written_checkpoint_of_a_killed_process_is_none(tmp_path: Path) -> None:
    store(tmp_path).save(checkpoint(1), best_step=None)
    part = tmp_path / ".step-00000002.part"
    part.mkdir()
    (part / "manifest.json").write_text("{}")
    assert newest(tmp_path) == 1
    store(tmp_path).save(checkpoint(2), best_step=None)
    assert not part.exists()


def test_the_last_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in range(1, 8):
        store(tmp_path, keep_last=2).save(checkpoint(step), best_step=min(step, 3))
    assert store(tmp_path).steps() == [3, 6, 7]


def test_together_they_stay_under_the_bound_and_the_best_goes_last(tmp_path: Path) -> None:
    size = checkpoint(1, 10_000).num_bytes
    for step in range(1, 7):
        store(tmp_path, keep_last=9, max_bytes=int(3.5 * size)).save(checkpoint(step, 10_000), best_step=2)
        assert sum(path.stat().st_size for path in tmp_path.rglob("*.*") if path.is_file()) < 3.5 * size
    assert store(tmp_path).steps() == [2, 5, 6]
    store(tmp_path, keep_last=9, max_bytes=int(2.5 * size)).save(checkpoint(7, 10_000), best_step=2)
    assert store(tmp_path).steps() == [6, 7]


def test_one_that_does_not_fit_beside_the_last_is_refused_and_that_one_kept(tmp_path: Path) -> None:
    size = checkpoint(1, 10_000).num_bytes
    small = store(tmp_path, max_bytes=int(1.5 * size))
    small.save(checkpoint(1, 10_000), best_step=None)
    with pytest.raises(StorageError, match="max_checkpoint_bytes") as caught:
        small.save(checkpoint(2, 10_000), best_step=None)
    assert caught.value.code == "checkpoint_too_large"
    assert store(tmp_path).steps() == [1]


def test_tensor_files_are_safetensors_aligned_and_hashed(tmp_path: Path) -> None:
    import hashlib

    tensors = {
        "bytes": torch.arange(5, dtype=torch.uint8),
        "scalar": torch.tensor(2.5),
        "half": torch.arange(6, dtype=torch.float16).view(2, 3),
        "transposed": torch.arange(6, dtype=torch.float32).view(2, 3).T,
        "empty": torch.zeros(0, 4),
        "long": torch.tensor([1, -1]),
    }
    path = tmp_path / "t.safetensors"
    assert write_tensors(path, tensors) == hashlib.sha256(path.read_bytes()).hexdigest()
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
