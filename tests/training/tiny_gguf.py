"""The tiny base models as GGUF files, so that llama.cpp can run them."""

import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.torch import load_file

from mini_claude.training.gguf_layout import GGUFLayout


def save_gguf(base: Path, path: Path) -> Path:
    """Write `base` in float32, with facts enough for llama.cpp, and say in the folder that it was made from it."""
    config = json.loads((base / "config.json").read_text())
    layout = GGUFLayout(base)
    writer = gguf.GGUFWriter(path, layout.architecture)
    _add_shapes(writer, layout.architecture, config)
    _add_tokenizer(writer, json.loads((base / "tokenizer.json").read_text()))
    for name, tensor in load_file(base / "model.safetensors").items():
        if tensor.ndim == 2:
            values = layout.weight(name.removesuffix(".weight"), tensor.numpy())
        else:
            values = tensor.numpy()
            if layout.architecture == "gemma3" and name.endswith("norm.weight"):
                values = values + 1  # transformers adds the 1 while it runs
            if name.endswith("bias"):
                values = layout.rows(name.removesuffix(".bias"), tensor.numpy()[:, None])[:, 0]
        gguf_name = layout.name(name)
        assert gguf_name is not None
        writer.add_tensor(gguf_name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (base / "made_from.json").write_text(json.dumps({"kind": "gguf", "location": str(path)}))
    return path


def _add_shapes(writer: gguf.GGUFWriter, architecture: str, config: dict[str, int]) -> None:
    heads = config.get("num_attention_heads") or config["n_head"]
    hidden = config.get("hidden_size") or config["n_embd"]
    writer.add_context_length(config.get("max_position_embeddings") or config["n_positions"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(config.get("num_hidden_layers") or config["n_layer"])
    writer.add_feed_forward_length(config.get("intermediate_size") or 4 * hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    if architecture == "gpt2":
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
        return
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(hidden // heads)
    writer.add_value_length(hidden // heads)
    writer.add_rope_dimension_count(hidden // heads)
    if architecture == "gemma3":
        writer.add_sliding_window(config["sliding_window"])
        writer.add_rope_freq_base(1_000_000.0)
    else:
        writer.add_rope_freq_base(10_000.0)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict[str, dict[str, dict[str, int]]]) -> None:
    vocab = tokenizer["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token == "</s>" else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(vocab["</s>"])
    writer.add_bos_token_id(vocab["</s>"])
