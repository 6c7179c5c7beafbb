"""Adapters from elsewhere: each hostile or broken one is refused with a sentence, and nothing in it ever runs."""

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mini_claude.errors import Conflict, ModelLoadError, StorageError, UnsafeModelFile
from mini_claude.models.adapter_files import check_adapter_folder
from mini_claude.training.adapter_folder import (
    AdapterFacts,
    check_adapter,
    import_adapter,
    read_facts,
    weights_sha256,
    write_facts,
)

from .tiny_adapters import load_adapted, save_adapter, save_base, some_sequences

Mutation = Callable[[Path, Path], object]
A_NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B_NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


class Payload:
    """Unpickling this creates the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.canary,)


def pickled(name: str) -> Mutation:
    def mutate(folder: Path, canary: Path) -> None:
        (folder / name).write_bytes(pickle.dumps(Payload(canary)))

    return mutate


def script(name: str) -> Mutation:
    def mutate(folder: Path, canary: Path) -> None:
        (folder / name).write_text(f"import pathlib; pathlib.Path({str(canary)!r}).touch()\n")

    return mutate


def config(**changes: object) -> Mutation:
    def mutate(folder: Path, canary: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return mutate


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Mutation:
    def mutate(folder: Path, canary: Path) -> None:
        path = folder / "adapter_model.safetensors"
        loaded = load_file(path)
        change(loaded)
        save_file({name: tensor.clone() for name, tensor in loaded.items()}, path)

    return mutate


def link(folder: Path, canary: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.safetensors").symlink_to("/etc/passwd")


def pickle_as_weights(folder: Path, canary: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Payload(canary)))


UNSAFE: dict[str, Mutation] = {
    "weights as a pickle": pickle_as_weights,
    "pickle beside the weights": pickled("training_args.bin"),
    "optimizer": pickled("optimizer.pt"),
    "pickle under an innocent name": pickled("notes.txt"),
    "code": script("modeling_evil.py"),
    "shared object": script("kernel.so"),
    "link out of the folder": link,
    "named pipe": lambda folder, canary: os.mkfifo(folder / "pipe"),
    "auto_map": config(auto_map={"AutoModel": "evil.Evil"}),
    "auto_mapping": config(auto_mapping={"base_model_class": "Evil", "parent_library": "evil"}),
    "trust_remote_code": config(trust_remote_code=True),
    "unknown field": config(runner="evil.module"),
    "another method": config(peft_type="IA3"),
    "a method that is no text": config(peft_type=["LORA"]),
    "another task": config(task_type="SEQ_CLS"),
    "rank 0": config(r=0),
    "rank above the limit": config(r=257),
    "rank that is no whole number": config(r=4.0),
    "rank that is a truth value": config(r=True),
    "alpha that is not finite": config(lora_alpha=float("inf")),
    "alpha that is NaN": config(lora_alpha=float("nan")),
    "negative alpha": config(lora_alpha=-1),
    "dropout of one": config(lora_dropout=1.0),
    "whole modules": config(modules_to_save=["lm_head"]),
    "biases": config(bias="all"),
    "biases of LoRA": config(lora_bias=True),
    "tokens": config(trainable_token_indices=[1, 2]),
    "parameters that are no modules": config(target_parameters=["experts.weight"]),
    "copied layers": config(layer_replication=[[0, 99999]]),
    "a module to import": config(megatron_config={"x": 1}, megatron_core="evil"),
    "another module to import": config(megatron_core="os"),
    "an initialisation that changes the base": config(init_lora_weights="pissa"),
    "LoftQ": config(loftq_config={"loftq_bits": 4}),
    "EVA": config(eva_config={"rho": 2}),
    "aLoRA": config(alora_invocation_tokens=[1]),
    "QA-LoRA": config(use_qalora=True),
    "a rank pattern that takes for ever": config(rank_pattern={"(a+)+$": 4}),
    "an alpha pattern that takes for ever": config(alpha_pattern={"(.*)*b": 4}),
    "a rank above the limit in a pattern": config(rank_pattern={"q_proj": 1000}),
    "targets that are no names": config(target_modules=[["q_proj"]]),
    "no targets": config(target_modules=[]),
    "a whole layer among the tensors": tensors(lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(2)})),
    "a bias among the tensors": tensors(lambda t: t.update({A_NAME.replace("lora_A.weight", "bias"): torch.ones(2)})),
    "an embedding's LoRA": tensors(lambda t: t.update({A_NAME[:-8] + "embedding_A": t[A_NAME]})),
    "a path for a name": tensors(lambda t: t.update({"base_model.model.../../x.lora_A.weight": torch.ones(4, 64)})),
    "whole numbers as weights": tensors(lambda t: t.update({A_NAME: torch.ones(4, 64, dtype=torch.int32)})),
}  # fmt: skip

BROKEN: dict[str, Mutation] = {
    "no configuration": lambda folder, canary: (folder / "adapter_config.json").unlink(),
    "no weights": lambda folder, canary: (folder / "adapter_model.safetensors").unlink(),
    "configuration is no JSON": lambda folder, canary: Path(folder / "adapter_config.json").write_text("{"),
    "configuration is a list": lambda folder, canary: Path(folder / "adapter_config.json").write_text("[1]"),
    "no rank": lambda folder, canary: Path(folder / "adapter_config.json").write_text('{"peft_type": "LORA"}'),
    "weights cut off": lambda folder, canary: os.truncate(folder / "adapter_model.safetensors", 3000),
    "no tensors": tensors(dict.clear),
    "A without B": tensors(lambda t: t.pop(B_NAME)),
    "A of another rank": tensors(lambda t: t.update({A_NAME: torch.ones(5, 64)})),
    "A of one dimension": tensors(lambda t: t.update({A_NAME: torch.ones(64)})),
    "A for a wider layer": tensors(lambda t: t.update({A_NAME: torch.ones(4, 65)})),
    "B for a wider layer": tensors(lambda t: t.update({B_NAME: torch.ones(65, 4)})),
    "a layer that the base has not": tensors(
        lambda t: t.update({name.replace("layers.0", "layers.9"): tensor for name, tensor in list(t.items())})
    ),
    "a layer that is no target": config(target_modules=["k_proj"]),
    "DoRA without magnitudes": config(use_dora=True),
    "NaN": tensors(lambda t: t[A_NAME].fill_(float("nan"))),
    "one infinity": tensors(lambda t: t[B_NAME][3].fill_(float("-inf"))),
    "NaN in 16 bits": tensors(lambda t: t.update({A_NAME: torch.full((4, 64), float("nan"), dtype=torch.bfloat16)})),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def saved(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(base, tmp_path_factory.mktemp("saved") / "adapter", targets=["q_proj"])


@pytest.fixture
def source(saved: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_adapters_are_refused_and_nothing_runs(source: Path, base: Path, tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    UNSAFE[name](source, canary)
    with pytest.raises(UnsafeModelFile if name != "weights as a pickle" else ModelLoadError):
        import_adapter(source, tmp_path / "adapters" / "1", base, "tiny")
    assert not canary.exists()
    assert not (tmp_path / "adapters").exists()


@pytest.mark.parametrize("name", BROKEN)
def test_broken_adapters_are_refused(source: Path, base: Path, tmp_path: Path, name: str) -> None:
    BROKEN[name](source, tmp_path)
    with pytest.raises(ModelLoadError) as caught:
        import_adapter(source, tmp_path / "adapters" / "1", base, "tiny")
    assert not isinstance(caught.value, UnsafeModelFile)
    assert not (tmp_path / "adapters").exists()


def test_a_header_that_begins_like_a_pickle_is_none(source: Path) -> None:
    """The header of 640 bytes that makes a file begin with pickle's mark."""
    path = source / "adapter_model.safetensors"
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    path.write_bytes(struct.pack("<Q", 0x280) + raw[8 : 8 + length].rstrip().ljust(0x280) + raw[8 + length :])
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert check_adapter_folder(source).layers


def test_an_imported_adapter_computes_what_the_original_does(source: Path, base: Path, tmp_path: Path) -> None:
    target = tmp_path / "adapters" / "1"
    facts = import_adapter(source, target, base, "tiny")
    ids = torch.tensor([some_sequences()[0]])
    with torch.inference_mode():
        assert torch.equal(load_adapted(base, target)(ids).logits, load_adapted(base, source)(ids).logits)
    assert {path.name for path in target.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "mini_claude.json",
    }
    assert read_facts(target) == facts
    assert (facts.base_model, facts.base_revision, facts.dataset_sha256) == ("tiny", weights_sha256(base), None)
    assert facts.environment["torch"] == torch.__version__


@pytest.mark.parametrize(
    "limits", [{"targets": r".*layers\.1.*q_proj"}, {"targets": ["q_proj", "v_proj"], "layers_to_transform": [1]}]
)
def test_targets_that_are_expressions_or_limited_become_names(
    base: Path, tmp_path: Path, limits: dict[str, object]
) -> None:
    source = save_adapter(base, tmp_path / "source", **limits)  # type: ignore[arg-type]
    import_adapter(source, tmp_path / "target", base, "tiny")
    written = json.loads((tmp_path / "target" / "adapter_config.json").read_text())
    assert set(written["target_modules"]) == set(check_adapter_folder(source).layers)
    assert all(name.startswith("model.layers.1.") for name in written["target_modules"])
    ids = torch.tensor([some_sequences()[0]])
    with torch.inference_mode():
        expected = load_adapted(base, source)(ids).logits
        assert torch.equal(load_adapted(base, tmp_path / "target")(ids).logits, expected)


def test_fields_without_effect_are_left_behind(source: Path, base: Path, tmp_path: Path) -> None:
    config(base_model_name_or_path="/home/somebody/secret", revision="main")(source, tmp_path)
    import_adapter(source, tmp_path / "target", base, "tiny")
    text = (tmp_path / "target" / "adapter_config.json").read_text()
    assert "somebody" not in text
    assert json.loads(text)["base_model_name_or_path"] == "tiny"


def test_an_adapter_that_fits_gpt2_is_checked_against_its_transposed_weights(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "gpt2")
    adapter = save_adapter(base, tmp_path / "adapter", targets=["c_attn"])
    assert len(check_adapter(adapter, base).layers) == 2


def test_an_existing_version_is_never_overwritten(source: Path, base: Path, tmp_path: Path) -> None:
    import_adapter(source, tmp_path / "target", base, "tiny")
    before = {path.name: path.read_bytes() for path in (tmp_path / "target").iterdir()}
    with pytest.raises(Conflict):
        import_adapter(source, tmp_path / "target", base, "tiny")
    assert {path.name: path.read_bytes() for path in (tmp_path / "target").iterdir()} == before


def test_a_source_that_changes_while_it_is_read_is_checked_again(
    source: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(_source: Path, target: Path) -> None:
        target.write_bytes(pickle.dumps(Payload(tmp_path / "canary")))

    monkeypatch.setattr(shutil, "copyfile", copy)
    with pytest.raises(ModelLoadError):
        import_adapter(source, tmp_path / "target", base, "tiny")
    assert set(tmp_path.iterdir()) == {source}


def test_a_full_disk_leaves_nothing_behind(
    source: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(_source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", copy)
    with pytest.raises(StorageError) as caught:
        import_adapter(source, tmp_path / "target", base, "tiny")
    assert caught.value.code == "disk_full"
    assert set(tmp_path.iterdir()) == {source}


def test_facts_survive_being_written(tmp_path: Path) -> None:
    facts = AdapterFacts("tiny", "ab", "cd", {"r": 4}, {"eval_loss": 1.5}, {"torch": "2"})
    write_facts(tmp_path, facts)
    assert asdict(read_facts(tmp_path)) == asdict(facts)
    (tmp_path / "mini_claude.json").write_text('{"something": "else"}')
    with pytest.raises(ModelLoadError, match="not of this version"):
        read_facts(tmp_path)


def test_the_base_revision_covers_every_weight_file(tmp_path: Path) -> None:
    (tmp_path / "model-1.safetensors").write_bytes(b"a")
    first = weights_sha256(tmp_path)
    (tmp_path / "model-2.safetensors").write_bytes(b"b")
    second = weights_sha256(tmp_path)
    (tmp_path / "model-2.safetensors").write_bytes(b"c")
    assert len({first, second, weights_sha256(tmp_path)}) == 3
