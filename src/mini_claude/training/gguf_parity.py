"""The GGUF exports as forms of the parity certificate, written anew and run by llama.cpp.

Quantised, llama.cpp rounds activations as well as weights, which for a small model moves log-probabilities by a tenth:
more than many an adapter does. So what the exports hold is compared in float32, where nothing hides, and the adapter
is tried once more on the quantised file that the base came as.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Final

from mini_claude.models.model_files import load_json_object
from mini_claude.training.adapter_gguf import write_adapter_gguf
from mini_claude.training.llama_cpp_logits import open_llama_cpp
from mini_claude.training.merged_gguf import GGUFTemplate
from mini_claude.training.parity import Form, LogProbs, Readings, Window

# Measured: 0.0003 on smollm2-135m in float32, 0.003 on tiny GPT-2 models, whose GELU llama.cpp looks up in a table of
# 16-bit numbers. Quantised, smollm2-135m's mean difference was 0.97 to 1.5 times the base's (0.125), for adapters that
# move log-probabilities by 0.1 to 3.7 on average.
ROUNDED_TOLERANCE: Final = 2e-2
NOISE_MULTIPLE: Final = 2.0


class GGUFForms:
    """The forms of one adapter. Each writes what it needs into a folder in `scratch_folder` and removes it."""

    def __init__(
        self, base_gguf: Path | None, base_folder: Path, adapter_folder: Path, scratch_folder: str | None = None
    ) -> None:
        """`scratch_folder` None: the system's folder for such things."""
        self._scratch_folder = scratch_folder
        self._base_gguf = base_gguf
        self._base_folder = base_folder
        self._adapter_folder = adapter_folder
        config = load_json_object(base_folder / "config.json")
        self._vocab_size: int = config.get("text_config", config)["vocab_size"]

    def forms(self) -> tuple[Form, ...]:
        """Adapter GGUF on a float32 base, merged GGUF in float32, adapter GGUF on the base's own file."""
        return (
            Form("gguf_adapter", ROUNDED_TOLERANCE, self._read_adapter),
            Form("gguf_merged", ROUNDED_TOLERANCE, self._read_merged),
            Form("gguf_adapter_quantized", ROUNDED_TOLERANCE, self._read_adapter_quantized, NOISE_MULTIPLE),
        )

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="mini-claude-", dir=self._scratch_folder) as folder:
            yield Path(folder)

    @cached_property
    def _template(self) -> GGUFTemplate:
        return GGUFTemplate(self._base_gguf)

    def _read_adapter(self, windows: Sequence[Window]) -> Readings:
        with self._scratch() as folder:
            write_adapter_gguf(self._base_folder, self._adapter_folder, folder / "adapter.gguf")
            self._template.write(self._base_folder, None, folder / "base.gguf", "f32")
            return self._with_adapter(folder / "base.gguf", folder / "adapter.gguf", windows)

    def _read_merged(self, windows: Sequence[Window]) -> Readings:
        with self._scratch() as folder:
            self._template.write(self._base_folder, self._adapter_folder, folder / "merged.gguf", "f32")
            with open_llama_cpp(folder / "merged.gguf", self._vocab_size) as model:
                return Readings([model.log_probs(window, adapter=False) for window in windows], base=None)

    def _read_adapter_quantized(self, windows: Sequence[Window]) -> Readings:
        with self._scratch() as folder:
            write_adapter_gguf(self._base_folder, self._adapter_folder, folder / "adapter.gguf")
            return self._with_adapter(self._template.path, folder / "adapter.gguf", windows)

    def _with_adapter(self, base: Path, adapter: Path, windows: Sequence[Window]) -> Readings:
        with open_llama_cpp(base, self._vocab_size, adapter_gguf=adapter) as model:
            tuned: list[LogProbs] = []
            plain: list[LogProbs] = []
            for window in windows:  # in turns, as a server would get them
                tuned.append(model.log_probs(window, adapter=True))
                plain.append(model.log_probs(window, adapter=False))
            return Readings(tuned, plain)
