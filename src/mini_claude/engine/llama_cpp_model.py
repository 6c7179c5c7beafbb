"""A GGUF file as a step model: llama.cpp computes on the CPU, and its cache holds the keys and values.

An adapter applies to all that is computed at once, so a step is as many calls as there are adapters in it.
"""

import ctypes
import shutil
import tempfile
import weakref
from collections.abc import Callable
from contextlib import closing
from ctypes import c_float, c_void_p
from operator import itemgetter
from pathlib import Path
from typing import Final

import gguf
import numpy as np
import psutil
from numpy.typing import NDArray

from mini_claude.engine.array_sampler import ArraySampler
from mini_claude.engine.llama_cpp_batch import BatchArrays
from mini_claude.engine.llama_cpp_cache import MAX_CELLS, Layout, LlamaCppCache
from mini_claude.engine.llama_cpp_library import (
    FLASH_ATTENTION,
    LOAD_WITHOUT_MAPPING,
    LlamaCppError,
    LlamaCppLibrary,
    llama_cpp_library,
)
from mini_claude.engine.scheduler import ScheduledChunk
from mini_claude.engine.sequence import SampledToken, Sequence
from mini_claude.engine.spare_cores import SpareCores, allowed_cores
from mini_claude.errors import InternalError, ModelLoadError, UnsupportedExport
from mini_claude.models.gguf_array import GGUFArray
from mini_claude.models.weight_files import read_gguf_header
from mini_claude.types import AdapterRef, LoadOptions
from mini_claude.utils.files import storage_errors

MAX_NUM_SEQS: Final = 256  # LLAMA_MAX_SEQ

WriteAdapter = Callable[[Path, Path], None]  # PEFT's folder, and the GGUF file that it is to become


class AdapterFile:
    """An adapter as a GGUF file in a private folder, which goes away with this object or by `remove`."""

    def __init__(self) -> None:
        """Raises `StorageError`."""
        with storage_errors(Path(tempfile.gettempdir())):
            folder = tempfile.mkdtemp(prefix="mini-claude-")
        self.path = Path(folder, "adapter.gguf")
        self.remove = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)


class LlamaCppModel:
    """See `StepModel` for the contract of its methods."""

    def __init__(
        self, gguf_file: Path, vocab_size: int, options: LoadOptions, write_adapter: WriteAdapter | None = None
    ) -> None:
        """`vocab_size` as for `TorchModel`. Without `write_adapter`, adapters are refused.

        Raises `ModelLoadError` for a file, or a kind of model, that cannot be run here.
        """
        if options.max_num_seqs > MAX_NUM_SEQS:
            raise ModelLoadError(f"llama.cpp takes a max_num_seqs of {MAX_NUM_SEQS} at the most; set it lower.")
        self._library = llama_cpp_library(options.native_llama_cpp)
        self._write_adapter = write_adapter
        self._adapters: dict[AdapterRef, int] = {}
        self._applied: tuple[AdapterRef | None, int] = (None, 1)  # and in which context, by their number
        self._vocab_size = vocab_size
        self._options = options
        self._sampler = ArraySampler()
        self._arrays = BatchArrays(options.max_num_batched_tokens)
        self._num_threads = options.num_threads or _num_cores()
        adapts = self._library.is_steady and not options.num_threads
        self._spare_cores = SpareCores(self._num_threads) if adapts else None
        self._viewed, self._view = (0, 0), np.empty((0, vocab_size), np.float32)  # address and rows, and what is there
        self._name = str(gguf_file)
        _check_memory(gguf_file, options.kv_cache_tokens)
        with self._library.telling(self._name):
            self._model = self._load(gguf_file)
        try:
            self._row_size: int = self._library.vocab_n_tokens(self._library.model_get_vocab(self._model))
            if self._row_size < vocab_size:
                raise ModelLoadError(f"{gguf_file} has {self._row_size} tokens and its tokenizer {vocab_size}.")
            with self._library.telling(self._name):
                self._check_state()
                _add_largest_adapter(self._library, self._model, gguf_file)
            self._cache = LlamaCppCache(
                self._library,
                self._make_context,
                options.kv_cache_tokens,
                min(options.max_num_seqs, options.max_num_batched_tokens),
                has_window=self._library.model_n_swa(self._model) > 0,
            )
        except Exception:  # another engine may be tried in this process
            self._library.model_free(self._model)
            raise

    @property
    def storage(self) -> LlamaCppCache:
        """See `StepModel.storage`."""
        return self._cache

    def step(self, chunks: list[ScheduledChunk]) -> list[SampledToken | InternalError]:
        """See `StepModel.step`."""
        adapters = {chunk.sequence.request.adapter for chunk in chunks}
        placed = self._place(chunks, together=len(adapters) == 1)
        sampled: dict[Sequence, SampledToken | InternalError] = {}
        for adapter in sorted(adapters, key=_adapter_name):
            group = [pair for pair in placed if pair[0].sequence.request.adapter == adapter]
            sampled |= zip((chunk.sequence for chunk, _ in group if chunk.completes), self._read(group), strict=True)
        return [sampled[chunk.sequence] for chunk in chunks if chunk.completes]

    def read_adapter(self, folder: Path) -> "AdapterFile":
        """See `StepModel.read_adapter`; also raises `StorageError`."""
        if self._write_adapter is None:
            raise ModelLoadError("This model takes no adapters.")
        converted = AdapterFile()
        try:
            self._write_adapter(folder, converted.path)
        except UnsupportedExport as error:
            raise ModelLoadError(
                f"llama.cpp cannot run this adapter; set engine to torch. {error.message}", code="unsupported_adapter"
            ) from error
        return converted

    def add_adapter(self, adapter: AdapterRef, weights: "AdapterFile") -> None:
        """See `StepModel.add_adapter`."""
        with self._library.telling(adapter.name):
            loaded = _not_null(self._library.adapter_lora_init(self._model, bytes(weights.path)))
        weights.remove()
        self._adapters[adapter] = loaded

    def remove_adapter(self, adapter: AdapterRef) -> None:
        """See `StepModel.remove_adapter`."""
        if adapter in self._adapters:
            if self._applied[0] == adapter:
                self._apply(None)
            self._library.adapter_lora_free(self._adapters.pop(adapter))

    def close(self) -> None:
        """See `StepModel.close`."""
        self._cache.close()
        self._library.model_free(self._model)  # and its adapters

    def _place(self, chunks: list[ScheduledChunk], *, together: bool) -> list[tuple[ScheduledChunk, int]]:
        """Each with its row, which has room for what it will read, by rows: llama.cpp computes all in one pass only as
        they lie, and reads the weights once more for each that comes before its left neighbour."""
        entries = [chunk.sequence.entry for chunk in chunks]
        needs = {entry: chunk.start + chunk.num_tokens for entry, chunk in zip(entries, chunks, strict=True) if entry}
        rows = self._cache.place(needs, together=together)
        placed = [(chunk, rows[entry]) for chunk, entry in zip(chunks, entries, strict=True) if entry]
        return sorted(placed, key=itemgetter(1))

    def _read(self, chunks: list[tuple[ScheduledChunk, int]]) -> list[SampledToken | InternalError]:
        """Read chunks of one adapter, each in its row, and choose the next token of each that completes."""
        completing = [chunk.sequence for chunk, _ in chunks if chunk.completes]
        return self._sampler.sample(self._run(chunks, len(completing)), completing)

    def _run(self, chunks: list[tuple[ScheduledChunk, int]], num_completing: int) -> NDArray[np.float32]:
        """Read chunks of one adapter, each in its row. Logits [completing, vocabulary], valid until the next call."""
        self._apply(chunks[0][0].sequence.request.adapter)
        token_ids: list[int] = []
        positions: list[int] = []
        sequences: list[int] = []
        is_wanted: list[bool] = []
        for chunk, row in chunks:
            token_ids += chunk.token_ids
            positions += range(chunk.start, chunk.start + chunk.num_tokens)
            sequences += [row] * chunk.num_tokens
            is_wanted += [False] * (chunk.num_tokens - 1)
            is_wanted.append(chunk.completes)
        self._spread()
        batch = self._arrays.fill(token_ids, positions, sequences, is_wanted)
        code = self._library.decode(self._cache.context, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code} for {len(token_ids)} tokens of {len(chunks)} sequences")
        if not num_completing:
            return np.empty((0, self._vocab_size), np.float32)
        return self._logits(num_completing)

    def _logits(self, num_rows: int) -> NDArray[np.float32]:
        """The memory in which llama.cpp has just left them. To make an array of it takes 60 microseconds, and it seldom
        moves."""
        where = _not_null(self._library.get_logits(self._cache.context)), num_rows
        if where != self._viewed:
            scores = (c_float * (num_rows * self._row_size)).from_address(where[0])
            rows = np.ctypeslib.as_array(scores).reshape(num_rows, self._row_size)
            self._view = rows[:, : self._vocab_size]
            self._viewed = where
        return self._view

    def _apply(self, adapter: AdapterRef | None) -> None:
        """Let an adapter, or none, change what is computed from here on."""
        context = self._cache.context
        if (adapter, self._cache.num_contexts) == self._applied:
            return
        adapters = [] if adapter is None else [self._adapters[adapter]]
        scales = [1.0] * len(adapters)
        code = self._library.set_adapters_lora(
            context, (c_void_p * len(adapters))(*adapters), len(adapters), (c_float * len(scales))(*scales)
        )
        if code != 0:
            raise RuntimeError(f"llama_set_adapters_lora returned {code} for {adapter}")
        self._applied = (adapter, self._cache.num_contexts)

    def _spread(self) -> None:
        """Over as many threads as there are cores that nobody else uses, where that changes nothing but the speed."""
        if self._spare_cores is None:
            return
        num_threads = self._spare_cores.num_threads
        if num_threads != self._num_threads:
            self._library.set_n_threads(self._cache.context, num_threads, num_threads)
            self._num_threads = num_threads  # of contexts to come too

    def _load(self, gguf_file: Path) -> int:
        params = self._library.model_default_params()
        params.n_gpu_layers = 0
        params.load_mode = LOAD_WITHOUT_MAPPING  # most weights are laid out anew: mapped as well, they were there twice
        return _not_null(self._library.model_load_from_file(bytes(gguf_file), params))

    def _check_state(self) -> None:
        if self._library.model_is_recurrent(self._model) or self._library.model_is_hybrid(self._model):
            raise LlamaCppError("its state is not made of tokens, so no part of it can be forgotten or shared")

    def _make_context(self, layout: Layout) -> int:
        params = self._library.context_default_params()
        params.n_ctx = layout.num_tokens * (1 if layout.is_shared else layout.num_rows)
        params.n_batch = params.n_ubatch = self._options.max_num_batched_tokens
        params.n_seq_max = params.n_outputs_max = layout.num_rows  # a step wants one output of each at the most
        params.n_threads = params.n_threads_batch = self._num_threads
        params.flash_attn_type = FLASH_ATTENTION
        params.kv_unified = layout.is_shared
        with self._library.telling(f"{self._name} with a cache of {params.n_ctx} tokens"):
            return _not_null(self._library.init_from_model(self._model, params))


def _adapter_name(adapter: AdapterRef | None) -> str:
    return "" if adapter is None else f"{adapter.name} {adapter.folder}"


def _add_largest_adapter(library: LlamaCppLibrary, model: int, gguf_file: Path) -> None:
    """Load an adapter of rank 1 that changes nothing, on all layers that one can change.

    A context reserves as many graph nodes as the adapters need that are there when it is made. With this one there, it
    has room for any that comes later, and aborts the whole process for none.
    """
    file = AdapterFile()
    architecture = ctypes.create_string_buffer(64)
    library.model_meta_val_str(model, gguf.Keys.General.ARCHITECTURE.encode(), architecture, len(architecture))
    with storage_errors(file.path), closing(gguf.GGUFWriter(file.path, architecture.value.decode())) as writer:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 1.0)
        for name, tensor in read_gguf_header(gguf_file).items():
            if name.startswith("blk.") and len(tensor.shape) == 2:
                num_in, num_out = tensor.shape
                writer.add_tensor(f"{name}.lora_a", GGUFArray.of(np.zeros((1, num_in), np.float32)))
                writer.add_tensor(f"{name}.lora_b", GGUFArray.of(np.zeros((num_out, 1), np.float32)))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    _not_null(library.adapter_lora_init(model, bytes(file.path)))


def _check_memory(gguf_file: Path, num_cache_tokens: int) -> None:
    """Before anything is read. Keys and values have two bytes for each output of the layers that make them, and there
    may be copies of all that the budget allows beside the context."""
    keys_and_values = ("attn_k.weight", "attn_v.weight")
    outputs = [t.shape[1] for name, t in read_gguf_header(gguf_file).items() if name.endswith(keys_and_values)]
    needed = gguf_file.stat().st_size + (MAX_CELLS + 1) * num_cache_tokens * 2 * sum(outputs)
    available = psutil.virtual_memory().available
    if needed > available:
        raise ModelLoadError(
            f"Loading {gguf_file} needs {needed / 1e6:,.0f} MB and {available / 1e6:,.0f} MB are free; unload another "
            "model, or set kv_cache_tokens lower.",
            code="insufficient_memory",
        )


def _num_cores() -> int:
    """Physical ones, as far as this process may use them."""
    allowed = len(allowed_cores())
    return min(psutil.cpu_count(logical=False) or allowed, allowed)


def _not_null(pointer: int | None) -> int:
    if pointer is None:
        raise LlamaCppError("it gives no reason")
    return pointer
