"""A GGUF file to a folder that transformers, PEFT and the trainer all read: float32 safetensors and a tokenizer."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path

import gguf
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging as transformers_logging

from mini_claude.models.tokenizer_files import write_summary


def convert_gguf(gguf_file: Path, folder: Path) -> None:
    """Write config.json, model.safetensors (float32), tokenizer (with its summary) and chat template into `folder`.

    Peak memory is about twice the float32 weights. Raises whatever transformers raises.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    where, name = gguf_file.parent, gguf_file.name
    progress_bar = StringIO()  # tqdm's own, which no setting of transformers turns off
    with _computed_once("GGUFReader"), _computed_once("get_tensor_name_map"), redirect_stderr(progress_bar):
        config = AutoConfig.from_pretrained(where, gguf_file=name, local_files_only=True)  # nosec B615
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name, config=config, local_files_only=True)  # nosec B615
        model = AutoModelForCausalLM.from_pretrained(  # nosec B615
            where,
            gguf_file=name,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            quantization_config=GgufConfig(dequantize=True),
        )
    model.config.name_or_path = ""  # a path of this machine
    model.save_pretrained(folder, max_shard_size="100GB")
    tokenizer.save_pretrained(folder)
    write_summary(folder)


@contextmanager
def _computed_once(name: str) -> Iterator[None]:
    """Let `gguf.<name>` remember its results for a while.

    transformers parses the whole file for the configuration, the tokenizer and the weights, and builds the same
    table of tensor names for every module of the model: two thirds of the conversion's time for a small model.
    """
    original = getattr(gguf, name)
    setattr(gguf, name, functools.cache(original))
    try:
        yield
    finally:
        setattr(gguf, name, original)
