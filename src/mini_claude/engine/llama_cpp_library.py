"""llama.cpp's C interface by ctypes: of the xllamacpp package, or compiled on this machine. Knows no torch.

xllamacpp itself offers llama.cpp's HTTP server, which has a scheduler, a tokenizer and a prompt cache of its own.
Called directly, llama.cpp is what torch is for the other engine: it computes logits, and everything else is ours.

Functions take numbers and pointers, which never change meaning. Two of them take a struct of options by value, and
its fields do change between versions: so their defaults, which llama.cpp tells, are compared with those that are
written here before anything is loaded. Field names are those of llama.h.
"""

import ctypes
import importlib.util
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint8, c_uint32, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, Final

from mini_claude.errors import ModelLoadError
from mini_claude.models.native_llama_cpp import has_kernels, native_library
from mini_claude.utils.logging import get_logger

log = get_logger(__name__)

_LOG_CALLBACK: Final = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)
_ERROR_LEVEL: Final = 4
_NUM_ERRORS: Final = 5  # the newest lines that are kept
_GUARD_BYTES: Final = 128  # behind each struct, for a version in which it is longer

LOAD_WITHOUT_MAPPING: Final = 0  # llama_load_mode: read the file; the default may map it into memory
FLASH_ATTENTION: Final = 1  # llama_flash_attn_type
WHOLE_STATE: Final = 0  # llama_state_seq_flags
WINDOWED_STATE: Final = 1  # of the layers with sliding windows, which have a cache of their own


class ModelParams(Structure):
    """llama_model_params."""

    _fields_ = (
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("load_mode", c_int32),
        ("lazy_mode", c_int32),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
        ("guard", c_uint8 * _GUARD_BYTES),
    )


class ContextParams(Structure):
    """llama_context_params. What `reserved` holds is not known by name; it is left as it comes."""

    _fields_ = (
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int32),
        ("rope_scaling_type", c_int32),
        ("pooling_type", c_int32),
        ("attention_type", c_int32),
        ("flash_attn_type", c_int32),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int32),
        ("type_v", c_int32),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        ("reserved", c_void_p),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
        ("guard", c_uint8 * _GUARD_BYTES),
    )


class Batch(Structure):
    """llama_batch: tokens, their positions, the sequences that each belongs to, and whether its logits are wanted."""

    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    )


# What the version of llama.cpp that this file was written for has as defaults; fields that are not named are 0.
_MODEL_DEFAULTS: Final[Mapping[str, float]] = {
    "n_gpu_layers": -1,
    "split_mode": 1,
    "load_mode": -1,
    "lazy_mode": 1,
    "use_extra_bufts": True,
}
_CONTEXT_DEFAULTS: Final[Mapping[str, float]] = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_outputs_max_per_seq": 1,
    "n_threads": 4,
    "n_threads_batch": 4,
    "rope_scaling_type": -1,
    "pooling_type": -1,
    "attention_type": -1,
    "flash_attn_type": -1,
    "yarn_ext_factor": -1.0,
    "yarn_attn_factor": -1.0,
    "yarn_beta_fast": -1.0,
    "yarn_beta_slow": -1.0,
    "defrag_thold": -1.0,
    "type_k": 1,
    "type_v": 1,
    "offload_kqv": True,
    "no_perf": True,
    "op_offload": True,
    "swa_full": True,
}
_PROTOTYPES: Final[Mapping[str, tuple[Any, ...]]] = {  # result, then arguments
    "llama_log_set": (None, _LOG_CALLBACK, c_void_p),
    "llama_backend_init": (None,),
    "llama_model_default_params": (ModelParams,),
    "llama_context_default_params": (ContextParams,),
    "llama_model_load_from_file": (c_void_p, c_char_p, ModelParams),
    "llama_model_free": (None, c_void_p),
    "llama_model_meta_val_str": (c_int32, c_void_p, c_char_p, c_char_p, c_size_t),
    "llama_model_get_vocab": (c_void_p, c_void_p),
    "llama_model_n_swa": (c_int32, c_void_p),
    "llama_model_is_recurrent": (c_bool, c_void_p),
    "llama_model_is_hybrid": (c_bool, c_void_p),
    "llama_vocab_n_tokens": (c_int32, c_void_p),
    "llama_init_from_model": (c_void_p, c_void_p, ContextParams),
    "llama_free": (None, c_void_p),
    "llama_set_n_threads": (None, c_void_p, c_int32, c_int32),
    "llama_get_memory": (c_void_p, c_void_p),
    "llama_memory_seq_rm": (c_bool, c_void_p, c_int32, c_int32, c_int32),
    "llama_state_seq_get_size_ext": (c_size_t, c_void_p, c_int32, c_uint32),
    "llama_state_seq_get_data": (c_size_t, c_void_p, c_void_p, c_size_t, c_int32),
    "llama_state_seq_set_data": (c_size_t, c_void_p, c_void_p, c_size_t, c_int32),
    "llama_decode": (c_int32, c_void_p, Batch),
    "llama_get_logits": (c_void_p, c_void_p),
    "llama_adapter_lora_init": (c_void_p, c_void_p, c_char_p),
    "llama_adapter_lora_free": (None, c_void_p),
    "llama_set_adapters_lora": (c_int32, c_void_p, POINTER(c_void_p), c_size_t, POINTER(c_float)),
}


class LlamaCppLibrary:
    """The functions of llama.h by their names, without the `llama_` in front."""

    def __init__(self, path: Path, is_steady: bool = False) -> None:
        """`is_steady`: what it computes does not depend, to the last bit, on how many threads do it.

        Raises `ModelLoadError` for a library whose interface is another one.
        """
        self.path = path
        self.is_steady = is_steady
        try:
            library = ctypes.CDLL(str(path))
            for name, (result, *arguments) in _PROTOTYPES.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
                setattr(self, name.removeprefix("llama_"), function)
        except (OSError, AttributeError) as error:
            raise ModelLoadError(f"llama.cpp in {path} cannot be called directly: {error}.") from error
        _check_defaults(self.model_default_params(), _MODEL_DEFAULTS)
        _check_defaults(self.context_default_params(), _CONTEXT_DEFAULTS)
        self._errors: deque[str] = deque(maxlen=_NUM_ERRORS)
        self._lock = threading.Lock()
        self._log_callback = _LOG_CALLBACK(self._log)  # kept, since llama.cpp keeps it
        self.log_set(self._log_callback, None)
        self.backend_init()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"llama_{name} is not among the functions that are declared here")

    @contextmanager
    def telling(self, what: str) -> Iterator[None]:
        """Raise `ModelLoadError` with llama.cpp's own words where the block raises `LlamaCppError`."""
        with self._lock:
            self._errors.clear()
            try:
                yield
            except LlamaCppError as error:
                reason = " ".join(self._errors) or str(error)
                raise ModelLoadError(f"llama.cpp cannot load {what}: {reason}") from error

    def _log(self, level: int, text: bytes, _user_data: object) -> None:
        if level == _ERROR_LEVEL:
            self._errors.append(text.decode("utf-8", "replace").strip())


class LlamaCppError(Exception):
    """llama.cpp returned nothing, or a code that is not 0."""


@cache
def llama_cpp_library(native: bool = True) -> LlamaCppLibrary:
    """The one of this process; `native`: the one compiled on this machine, if there is one. Raises `ModelLoadError`."""
    if native and (compiled := native_library()) is not None:
        log.info("llama_cpp.native", path=str(compiled))
        return LlamaCppLibrary(compiled, is_steady=has_kernels())
    package = importlib.util.find_spec("xllamacpp")
    folder = None if package is None or package.origin is None else Path(package.origin).parent
    names = ("*.so", "*.dylib", "*.pyd")
    path = None if folder is None else next((path for name in names for path in folder.glob(f"xllamacpp{name}")), None)
    if path is None:
        raise ModelLoadError("The Python package xllamacpp is not installed; install it, or set engine to torch.")
    return LlamaCppLibrary(path)


def _check_defaults(params: Structure, expected: Mapping[str, float]) -> None:
    for name, *_ in params._fields_:
        value = getattr(params, name)
        if name != "guard" and (value or 0) != expected.get(name, 0):
            raise ModelLoadError(
                f"This version of xllamacpp has other options than the one that Mini-Claude was made for ({name} is "
                f"{value}); install the version that constraints.txt names, or set engine to torch."
            )
