"""The weights of a base model with an adapter merged into them, one tensor at a time.

W' = W + scale * B A                                   (Hu et al. 2021, section 4.1)
W' = m * (W + scale * B A) / |W + scale * B A|         with DoRA, norms over each output's row (Liu et al. 2024)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from mini_claude.errors import ModelLoadError
from mini_claude.models.adapter_files import WEIGHTS_FILE, AdapterFiles, tensor_name
from mini_claude.models.model_files import load_json_object
from mini_claude.models.weight_files import TensorInfo, read_safetensors_header
from mini_claude.training.adapter_folder import base_tensor_name, check_adapter, embedding_name

OUTPUT_LAYER = "lm_head"


@dataclass(frozen=True, slots=True)
class _Change:
    """What becomes of a tensor: `source` is the base tensor that it is made of."""

    layer: str
    source: str
    is_transposed: bool  # Conv1D: [in, out]


class MergedWeights:
    """Tensors of the merged model by their names in the base's files. Nothing is read before it is asked for."""

    def __init__(self, base_folder: Path, adapter_folder: Path | None) -> None:
        """Without an adapter, the base's. Raises `UnsafeModelFile` or `ModelLoadError` for folders that are unsafe,
        damaged or do not fit."""
        self._base_folder = base_folder
        self._adapter = None if adapter_folder is None else check_adapter(adapter_folder, base_folder)
        layers = () if self._adapter is None else tuple(self._adapter.layers)
        self._paths: dict[str, Path] = {}
        self.tensors: dict[str, TensorInfo] = {}
        for path in sorted(base_folder.glob("*.safetensors")):
            header = read_safetensors_header(path)
            self.tensors |= header
            self._paths |= dict.fromkeys(header, path)
        self.unties = OUTPUT_LAYER in layers and self._is_tied()
        self._changes = self._plan(layers)
        for name, change in self._changes.items():
            # In 16 bits the sum would be rounded, and a small adapter with it.
            self.tensors[name] = TensorInfo("F32", self.tensors[change.source].shape)

    @property
    def changed(self) -> frozenset[str]:
        """The tensors that differ from the base's; all of them are float32."""
        return frozenset(self._changes)

    def read(self, name: str) -> torch.Tensor:
        """The tensor, in memory of its own."""
        change = self._changes.get(name)
        if change is None or self._adapter is None:
            return _read(self._paths[name], name)
        base = _read(self._paths[change.source], change.source).float()
        merged = _merged(base.T if change.is_transposed else base, self._adapter, change.layer)
        return (merged.T if change.is_transposed else merged).contiguous()

    def _plan(self, layers: tuple[str, ...]) -> dict[str, _Change]:
        modules = _modules(self._base_folder)
        changes = {}
        for layer in layers:
            module = modules.get(layer)
            if not isinstance(module, torch.nn.Linear | Conv1D):
                raise ModelLoadError(f"{layer} is no linear layer of the model in {self._base_folder}.")
            source = base_tensor_name(layer, self.tensors)
            if layer == OUTPUT_LAYER and self.unties:
                source = embedding_name(self.tensors)
            if source is None or not self.tensors[source].dtype.startswith(("F", "BF")):
                raise ModelLoadError(
                    f"The weights of {layer} in {self._base_folder} are missing or quantised, so that nothing can be "
                    "merged into them; merge into the model's original weights."
                )
            name = f"{OUTPUT_LAYER}.weight" if layer == OUTPUT_LAYER else source
            changes[name] = _Change(layer, source, isinstance(module, Conv1D))
        return changes

    def _is_tied(self) -> bool:
        """Whether input embeddings and output layer are one tensor."""
        config = load_json_object(self._base_folder / "config.json")
        default = base_tensor_name(OUTPUT_LAYER, self.tensors) is None
        return bool(config.get("text_config", config).get("tie_word_embeddings", default))


def _merged(weight: torch.Tensor, adapter: AdapterFiles, layer: str) -> torch.Tensor:
    """`weight`, [out, in], with the adapter's part of the layer."""

    def tensor(part: str) -> torch.Tensor:
        return _read(adapter.folder / WEIGHTS_FILE, tensor_name(layer, part)).float()

    merged = torch.addmm(weight, tensor("lora_B"), tensor("lora_A"), alpha=adapter.config.scale(layer))
    if adapter.config.use_dora:
        merged = (tensor("lora_magnitude_vector") / torch.linalg.norm(merged, dim=1))[:, None] * merged
    return merged


def _modules(folder: Path) -> Mapping[str, torch.nn.Module]:
    """The model's modules without weights, by name."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)  # nosec B615
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return dict(model.named_modules())


def _read(path: Path, name: str) -> torch.Tensor:
    """A copy: a mapped file stays in memory as a whole while one of its tensors is used."""
    with safe_open(path, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor.clone()
