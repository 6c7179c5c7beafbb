import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CORPUS = (
    "The quick brown fox jumps over the lazy dog. Hello there, how are you today? I am fine, thank you.",
    "user assistant system model What is the capital of France? The capital of France is Paris.",
    "The answer to the question is that the thing there is the same as the other thing here.",
)
MakeTokenizer = Callable[..., PreTrainedTokenizerFast]


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    """A small GPT-2-like tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


@pytest.fixture(scope="session")
def sentencepiece() -> Tokenizer:
    """A small tokenizer as Llama 2's: a space is ▁, one is put before the text, unknown characters are bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    spec = json.loads(tokenizer.to_str())
    spec["model"]["byte_fallback"] = True
    spec["added_tokens"] = spec["added_tokens"][:3]
    result = Tokenizer.from_str(json.dumps(spec))
    result.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return result


@pytest.fixture(scope="session")
def make_tokenizer() -> MakeTokenizer:
    def make(
        base: Tokenizer,
        template: str | None,
        special: Sequence[str | AddedToken],
        shown: Sequence[str] = (),
        **roles: str,
    ) -> PreTrainedTokenizerFast:
        copy = Tokenizer.from_str(base.to_str())
        copy.add_special_tokens(list(special))
        copy.add_tokens([AddedToken(token, special=False, normalized=False) for token in shown])
        return PreTrainedTokenizerFast(tokenizer_object=copy, chat_template=template, **roles)

    return make


@pytest.fixture
def tiny_model(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: MakeTokenizer, byte_level: Tokenizer) -> Path:
    """A folder with a random two-layer Llama and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = make_tokenizer(byte_level, None, ["</s>"], eos_token="</s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_array("tokenizer.ggml.token_type", [1, 1])
    writer.add_bool("flag", True)
    writer.add_float32("number", 0.5)
    writer.add_tensor("x", np.zeros((4, 32), np.float32))
    writer.add_tensor("y", np.zeros(3, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
