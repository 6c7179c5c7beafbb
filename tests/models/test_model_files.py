"""Hostile and broken model folders: each is refused with a sentence, and nothing in it ever runs."""

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mini_claude.errors import ModelLoadError, UnsafeModelFile
from mini_claude.models.materialize import materialize
from mini_claude.models.model_files import check_model_folder
from mini_claude.models.weight_files import read_gguf_header, read_safetensors_header
from mini_claude.models.weights import load_weights
from mini_claude.types import LoadOptions, ModelSource, ModelSpec

Mutation = Callable[[Path, Path], None]


class Payload:
    """Unpickling this creates the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.canary,)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    (folder / "tokenizer.json").write_text("{}")
    save_file({"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float16)}, folder / "model.safetensors")
    return folder


def write_json(name: str, value: object) -> Mutation:
    def mutate(folder: Path, canary: Path) -> None:
        (folder / name).write_text(json.dumps(value))

    return mutate


def pickled(name: str, protocol: int = 4) -> Mutation:
    def mutate(folder: Path, canary: Path) -> None:
        (folder / name).write_bytes(pickle.dumps(Payload(canary), protocol))

    return mutate


def script(name: str) -> Mutation:
    def mutate(folder: Path, canary: Path) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"import pathlib; pathlib.Path({str(canary)!r}).touch()\n")

    return mutate


def archive(name: str) -> Mutation:
    def mutate(folder: Path, canary: Path) -> None:
        with zipfile.ZipFile(folder / name, "w") as file:
            file.writestr("data.pkl", pickle.dumps(Payload(canary)))

    return mutate


def link(name: str, target: str) -> Mutation:
    def mutate(folder: Path, canary: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return mutate


def fifo(folder: Path, canary: Path) -> None:
    os.mkfifo(folder / "pipe.json")


UNSAFE: dict[str, Mutation] = {
    "pytorch_model.bin": pickled("pytorch_model.bin"),
    "upper-case .BIN": pickled("model.BIN"),
    ".pt": pickled("model.pt"),
    ".pth": pickled("model.pth"),
    ".pkl": pickled("extra.pkl"),
    ".ckpt": pickled("model.ckpt"),
    "training_args.bin": pickled("training_args.bin"),
    "pickle under an innocent name": pickled("notes.txt"),
    "pickle of protocol 2 without a suffix": pickled("weights", 2),
    "pickle as tokenizer.model": pickled("tokenizer.model"),
    "double suffix": pickled("model.pt.txt"),
    "zip as .dat": archive("weights.dat"),
    "zip as .json": archive("extra.json"),
    "torch archive": archive("model.pt"),
    "Keras file": archive("model.keras"),
    "HDF5 file": pickled("tf_model.h5"),
    "numpy archive": archive("arrays.npz"),
    "modeling code": script("modeling_evil.py"),
    "configuration code": script("configuration_evil.py"),
    "code in a subfolder": script("nested/tokenization_evil.py"),
    "custom generate": script("custom_generate/generate.py"),
    "shell script": script("install.sh"),
    "shared object": script("kernel.so"),
    "library": script("kernel.dll"),
    "auto_map in config": write_json("config.json", {"model_type": "llama", "auto_map": {"AutoModel": "evil.Evil"}}),
    "auto_map in tokenizer config": write_json("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T"]}}),
    "auto_map of another repository": write_json("config.json", {"auto_map": {"AutoModel": "evil/repo--code.Evil"}}),
    "auto_map deep inside": write_json("config.json", {"a": [{"b": {"auto_map": {"AutoConfig": "x.Y"}}}]}),
    "auto_map in any other JSON": write_json("processor_config.json", {"auto_map": {"AutoProcessor": "x.Y"}}),
    "trust_remote_code": write_json("config.json", {"model_type": "llama", "trust_remote_code": True}),
    "weights file of its own choice": write_json("config.json", {"transformers_weights": "/etc/shadow"}),
    "link to a file outside": link("model.safetensors", "/etc/passwd"),
    "link to a parent": link("extra.json", "../../secret.json"),
    "link to a folder outside": link("nested", "/"),
    "dead link": link("extra.json", "nowhere.json"),
    "named pipe": fifo,
    "index with an absolute path": write_json(
        "model.safetensors.index.json", {"weight_map": {"a": "/etc/passwd.safetensors"}}
    ),
    "index with a parent path": write_json("model.safetensors.index.json", {"weight_map": {"a": "../x.safetensors"}}),
    "index with a pickle": write_json("model.safetensors.index.json", {"weight_map": {"a": "pytorch_model"}}),
    "index with NUL": write_json("model.safetensors.index.json", {"weight_map": {"a": "x\0.safetensors"}}),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_folders_are_refused_and_nothing_runs(folder: Path, tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    UNSAFE[name](folder, canary)
    spec = ModelSpec("evil", "causal_lm", (ModelSource("folder", str(folder)),))
    with pytest.raises(UnsafeModelFile) as caught:
        check_model_folder(folder)
    assert caught.value.code == "unsafe_model_file"
    with pytest.raises(UnsafeModelFile):
        load_weights(folder, LoadOptions(device="cpu"))
    with pytest.raises(UnsafeModelFile):
        materialize(spec, tmp_path / "models", allow_download=False, hub_owners=())
    assert not canary.exists()


def safetensors_of(header: object, num_bytes: int = 0) -> bytes:
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(num_bytes)


def entry(shape: list[object], start: object, stop: object, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


BROKEN_SAFETENSORS = {
    "empty": b"",
    "shorter than its length field": b"\x01\x02",
    "header longer than the file": struct.pack("<Q", 1 << 40) + b"{}",
    "header of 2**64 - 1 bytes": b"\xff" * 16,
    "header is no JSON": struct.pack("<Q", 4) + b"{{{{",
    "header is a list": safetensors_of([1]),
    "header nests without end": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "tensor past the end": safetensors_of({"a": entry([4], 0, 16)}, 8),
    "bytes that no tensor owns": safetensors_of({"a": entry([4], 0, 16)}, 24),
    "gap between tensors": safetensors_of({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, 12),
    "overlapping tensors": safetensors_of({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, 12),
    "shape larger than its bytes": safetensors_of({"a": entry([1 << 40], 0, 4)}, 4),
    "negative shape": safetensors_of({"a": entry([-1], 0, -4)}, 0),
    "fractional shape": safetensors_of({"a": entry([1.5], 0, 6)}, 6),
    "offset is a text": safetensors_of({"a": entry([1], "0", 4)}, 4),
    "unknown element type": safetensors_of({"a": entry([1], 0, 4, "PYTHON")}, 4),
    "no offsets": safetensors_of({"a": {"dtype": "F32", "shape": [1]}}, 4),
    "tensor is a number": safetensors_of({"a": 7}),
}


@pytest.mark.parametrize("name", BROKEN_SAFETENSORS)
def test_broken_safetensors_are_refused_before_loading(folder: Path, name: str) -> None:
    (folder / "model.safetensors").write_bytes(BROKEN_SAFETENSORS[name])
    with pytest.raises(ModelLoadError, match="truncated or damaged") as caught:
        check_model_folder(folder)
    assert caught.value.code == "model_file_damaged"


def test_every_truncation_of_a_safetensors_file_is_noticed(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelLoadError):
            read_safetensors_header(path)


@pytest.mark.parametrize(
    ("missing", "words"),
    [("config.json", "has no config.json"), ("tokenizer.json", "no tokenizer"), ("model.safetensors", "lacks model")],
)
def test_missing_files_are_named(folder: Path, missing: str, words: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(ModelLoadError, match=words):
        check_model_folder(folder)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")])
def test_broken_json_is_named(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelLoadError, match=r"config\.json cannot be read"):
        check_model_folder(folder)


def test_a_file_is_not_a_folder(folder: Path) -> None:
    with pytest.raises(ModelLoadError, match="not a folder"):
        check_model_folder(folder / "config.json")


def test_a_folder_with_only_gguf_says_how_to_register_it(folder: Path, gguf_file: Path) -> None:
    gguf_file.rename(folder / "m.gguf")
    (folder / "config.json").unlink()
    with pytest.raises(ModelLoadError, match=r"register the \.gguf file"):
        check_model_folder(folder)


def test_good_folders_pass_and_tell_their_tensors(folder: Path) -> None:
    tensors = check_model_folder(folder)
    assert {name: tensor.num_elements for name, tensor in tensors.items()} == {"a": 6, "b": 4}
    assert tensors["b"].dtype == "F16"


def test_sharded_weights_pass(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    save_file({"c": np.zeros(5, np.float32)}, folder / "model-00002-of-00002.safetensors")
    weight_map = dict.fromkeys("ab", "model-00001-of-00002.safetensors") | {"c": "model-00002-of-00002.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert set(check_model_folder(folder)) == {"a", "b", "c"}
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="lacks model-00002"):
        check_model_folder(folder)


def test_links_inside_the_folder_and_words_in_a_vocabulary_are_harmless(folder: Path) -> None:
    (folder / "config.json").rename(folder / "real.json")
    (folder / "config.json").symlink_to("real.json")
    (folder / "vocab.json").write_text(json.dumps({"auto_map": 1, "trust_remote_code": 2}))
    check_model_folder(folder)


# --- GGUF ------------------------------------------------------------------------------------------------------


def test_gguf_header_tells_its_tensors(gguf_file: Path) -> None:
    tensors = read_gguf_header(gguf_file)
    assert {name: (tensor.dtype, tensor.num_elements) for name, tensor in tensors.items()} == {
        "x": ("F32", 128),
        "y": ("F16", 3),
    }


def test_every_truncation_of_a_gguf_file_is_noticed(gguf_file: Path) -> None:
    whole = gguf_file.read_bytes()
    padding = 32  # after the last tensor
    for length in range(0, len(whole) - padding, 7):
        gguf_file.write_bytes(whole[:length])
        with pytest.raises(ModelLoadError):
            read_gguf_header(gguf_file)


@pytest.mark.parametrize("position", range(4, 200, 3))
def test_damaged_gguf_headers_end_in_an_error_or_a_header(gguf_file: Path, position: int) -> None:
    damaged = bytearray(gguf_file.read_bytes())
    damaged[position : position + 8] = b"\xff" * 8
    gguf_file.write_bytes(damaged)
    with suppress(ModelLoadError):  # any other exception fails
        assert len(read_gguf_header(gguf_file)) == 2
