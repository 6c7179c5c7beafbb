"""What llama.cpp computes with a GGUF file and, for the adapter, with another one beside it.

It runs inside of this process. Its HTTP server cannot be turned off, so it listens on a Unix socket in a private
folder and wants a random key; nobody connects.
"""

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import xllamacpp

from mini_claude.errors import ModelLoadError
from mini_claude.training.parity import MAX_TOKENS, NUM_TOP, LogProbs, Window

_CONTEXT: Final = 2 * MAX_TOKENS


class LlamaCpp:
    """A loaded GGUF file. Keys and values are kept in float32: what is compared are the weights."""

    def __init__(self, server: Any, vocab_size: int, *, has_adapter: bool) -> None:
        self._server = server
        self._vocab_size = vocab_size
        self._has_adapter = has_adapter

    def log_probs(self, window: Window, *, adapter: bool) -> LogProbs:
        """Log-probabilities of what follows each of the window's tokens from `first` on.

        Only the NUM_TOP largest of each position are told; the others are NaN. `adapter` False gives the base.
        Raises `ModelLoadError` where llama.cpp refuses.
        """
        num_tokens = len(window.token_ids)
        rows = np.full((num_tokens - window.first, self._vocab_size), np.nan, np.float32)
        for row, end in enumerate(range(window.first + 1, num_tokens + 1)):
            for token in self._top(list(window.token_ids[:end]), adapter=adapter):
                rows[row, token["id"]] = token["logprob"]
        return rows

    def _top(self, prompt: list[int], *, adapter: bool) -> list[dict[str, Any]]:
        request: dict[str, Any] = {
            "prompt": prompt,
            "n_predict": 1,
            "n_probs": min(NUM_TOP, self._vocab_size),
            "temperature": 0.0,
            "samplers": ["top_k"],
            "top_k": 1,
            "cache_prompt": True,
            # What is sampled does not matter, but a token that is no text (EOS, a part of a character) is answered
            # without probabilities. These are of the model's own logits, before the grammar.
            "grammar": "root ::= [a-z]",
        }
        if self._has_adapter:  # one that is loaded is applied to every request that does not say otherwise
            request["lora"] = [{"id": 0, "scale": 1.0 if adapter else 0.0}]
        response = self._server.handle_completions(request)
        if "error" in response:
            raise ModelLoadError(f"llama.cpp refuses to compute: {response['error'].get('message')}.")
        top: list[dict[str, Any]] = response["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        return top


@contextmanager
def open_llama_cpp(model_gguf: Path, vocab_size: int, *, adapter_gguf: Path | None = None) -> Iterator[LlamaCpp]:
    """llama.cpp with these files, on one thread: more would wait for each other where the cores are busy.

    Raises `ModelLoadError` where llama.cpp refuses a file.
    """
    with tempfile.TemporaryDirectory(prefix="mini-claude-") as folder:
        params = xllamacpp.CommonParams()
        params.model.path = str(model_gguf)
        params.hostnames = [str(Path(folder, "unused.sock"))]
        params.api_keys = [secrets.token_hex(32)]
        params.verbosity = -1
        params.ui = params.warmup = False
        params.n_gpu_layers = 0
        params.n_parallel = 1
        params.n_ctx = _CONTEXT
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        if adapter_gguf is not None:
            params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter_gguf), 1.0)]
        try:
            server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise ModelLoadError(f"llama.cpp cannot load {model_gguf}: {error}") from error
        yield LlamaCpp(server, vocab_size, has_adapter=adapter_gguf is not None)
        del server
