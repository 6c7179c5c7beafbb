"""The parity certificate of an adapter: measures every form in which the tuned model runs, and says whether they agree.

It loads the base model several times, one after another, so it is work for a process of its own (adapter_work.py).
"""

import asyncio
import gc
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from mini_claude.engine.engine import Engine
from mini_claude.engine.llama_cpp_engine import LlamaCppEngine
from mini_claude.engine.torch_engine import TorchEngine
from mini_claude.errors import ModelLoadError, UnsupportedExport
from mini_claude.models.materialize import source_gguf
from mini_claude.models.model_factory import create_chat_model
from mini_claude.models.weights import load_weights
from mini_claude.runtime.served_gguf import ready_gguf
from mini_claude.training.adapter_folder import (
    FACTS_FILE,
    adapter_sha256,
    check_adapter,
    environment,
    read_facts,
    weights_sha256,
)
from mini_claude.training.adapter_gguf import write_adapter_gguf
from mini_claude.training.gguf_parity import NOISE_MULTIPLE, ROUNDED_TOLERANCE, GGUFForms
from mini_claude.training.merge import merge_adapter
from mini_claude.training.parity import NUM_TOP, Certificate, Form, LogProbs, Readings, Window, certify, windows_of
from mini_claude.training.transformers_logits import read_merged, read_trainer
from mini_claude.types import AdapterRef, GenerationRequest, LoadOptions, ModelFamily, ModelSpec, SamplingParams

# Log-probabilities in float32. Measured on smollm2-135m: 0.0001 for the engine as for the merged weights.
_TOLERANCE: Final = 1e-3
_CACHE_TOKENS: Final = 2048  # for a window that is asked about, position by position
_PARAMS: Final = SamplingParams(max_tokens=1, temperature=0.0, logprobs=NUM_TOP, ignore_eos=True)


@dataclass(frozen=True, slots=True)
class CertificationRequest:
    """What to measure: a materialised base model, an adapter's folder and token ids that training has not seen."""

    base_folder: str
    adapter_folder: str
    sequences: tuple[tuple[int, ...], ...]
    scratch_folder: str | None = None  # for whole models; None: the system's folder for such things
    family: ModelFamily = "causal_lm"


def certify_adapter(request: CertificationRequest) -> Certificate:
    """Compare trainer, engines, merged export and GGUF exports; in float32 on the CPU, but for what serves from GGUF.

    Raises `UnsafeModelFile` or `ModelLoadError` for folders that cannot be used, code "base_changed" for a base
    that is not the one that the adapter was made for, and `InvalidRequest` without token ids.
    """
    base, adapter = Path(request.base_folder), Path(request.adapter_folder)
    windows = windows_of(request.sequences)
    check_adapter(adapter, base)
    base_sha256 = weights_sha256(base)
    if (adapter / FACTS_FILE).exists() and read_facts(adapter).base_revision != base_sha256:
        raise ModelLoadError(
            "The base model's weights are not those that this adapter was made for; train or import it again.",
            code="base_changed",
        )
    forms = (
        Form("engine", _TOLERANCE, lambda windows: _read_engine(base, adapter, request.family, windows)),
        Form(
            "engine_llama_cpp",
            ROUNDED_TOLERANCE,
            lambda windows: _read_llama_cpp(base, adapter, request.family, windows),
            NOISE_MULTIPLE,
        ),
        Form("merged", _TOLERANCE, lambda windows: _read_merged(base, adapter, request.scratch_folder, windows)),
        *GGUFForms(source_gguf(base), base, adapter, request.scratch_folder).forms(),
    )
    return certify(
        Form("trainer", 0.0, lambda windows: read_trainer(base, adapter, windows)),
        forms,
        windows,
        identity={"base_sha256": base_sha256, "adapter_sha256": adapter_sha256(adapter)},
        environment=environment("gguf", "xllamacpp"),
    )


def _read_merged(base: Path, adapter: Path, scratch_folder: str | None, windows: Sequence[Window]) -> Readings:
    with tempfile.TemporaryDirectory(prefix="mini-claude-", dir=scratch_folder) as folder:
        merge_adapter(base, adapter, Path(folder, "merged"))
        return read_merged(Path(folder, "merged"), windows)


def _read_engine(base: Path, adapter: Path, family: ModelFamily, windows: Sequence[Window]) -> Readings:
    """The torch engine as it serves: requests with the adapter and without it in the same batches."""
    gc.collect()  # the trainer's form of the model, before there is a second one
    chat_model = create_chat_model(ModelSpec("base", family, ()), base)
    options = LoadOptions(device="cpu", dtype="float32")
    engine = TorchEngine(load_weights(base, options), chat_model.codec, chat_model.context_length, options)
    return asyncio.run(_ask_engine(engine, chat_model.codec.vocab_size, adapter, windows))


def _read_llama_cpp(base: Path, adapter: Path, family: ModelFamily, windows: Sequence[Window]) -> Readings:
    """The same from llama.cpp's engine, on the file that it serves from with gguf_type auto."""
    gguf = ready_gguf(base)
    if gguf is None:
        raise UnsupportedExport("This model did not come from a GGUF file, so llama.cpp does not serve it.")
    chat_model = create_chat_model(ModelSpec("base", family, ()), base)
    options = LoadOptions(kv_cache_tokens=_CACHE_TOKENS)
    write_adapter = partial(write_adapter_gguf, base)
    try:
        engine = LlamaCppEngine(gguf, chat_model.codec, chat_model.context_length, options, write_adapter)
    except ModelLoadError as error:  # then it serves nothing from it either
        raise UnsupportedExport(error.message) from error
    try:
        return asyncio.run(_ask_engine(engine, chat_model.codec.vocab_size, adapter, windows))
    except ModelLoadError as error:
        if error.code == "unsupported_adapter":
            raise UnsupportedExport(error.message) from error
        raise


async def _ask_engine(engine: Engine, vocab_size: int, adapter: Path, windows: Sequence[Window]) -> Readings:
    ref = AdapterRef("adapter", str(adapter))
    tuned: list[LogProbs] = []
    plain: list[LogProbs] = []
    try:
        for window in windows:
            both = await asyncio.gather(
                _log_probs(engine, vocab_size, window, ref), _log_probs(engine, vocab_size, window, None)
            )
            tuned.append(both[0])
            plain.append(both[1])
    finally:
        await engine.close()
    return Readings(tuned, plain)


async def _log_probs(engine: Engine, vocab_size: int, window: Window, adapter: AdapterRef | None) -> LogProbs:
    """[positions, vocabulary], NaN where the engine does not tell."""
    ends = range(window.first + 1, len(window.token_ids) + 1)
    rows = np.full((len(ends), vocab_size), np.nan, np.float32)

    async def ask(row: int, prompt: tuple[int, ...]) -> None:
        name = f"{row} {adapter is not None}"
        async for delta in engine.generate(GenerationRequest(name, prompt, _PARAMS, adapter)):
            for token in delta.logprobs or ():
                for candidate in token.top:
                    rows[row, candidate.token_id] = candidate.logprob

    await asyncio.gather(*(ask(row, window.token_ids[:end]) for row, end in enumerate(ends)))
    return rows
