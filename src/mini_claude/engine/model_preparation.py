"""Turns a freshly loaded Hugging Face model into one that the engine can run, or says why it cannot.

The model's own eager attention gives the reference. Then attention is redirected to the engine's cache, layers are
fused, and two sequences are read in uneven chunks, mixed in one row. Only a model for which the logits agree
is accepted: an architecture that keeps state elsewhere (Mamba), or biases its scores in a way of its
own (ALiBi), is refused here instead of talking nonsense later.
"""

import torch
from transformers import PreTrainedModel

from mini_claude.engine import attention
from mini_claude.engine.adapter_weights import LayerShape
from mini_claude.engine.kv_cache import CacheEntry
from mini_claude.engine.lora import adaptable_layers
from mini_claude.engine.model_runner import Part, Runner
from mini_claude.engine.norm_fusion import fuse_norms
from mini_claude.engine.projection_fusion import fuse_projections
from mini_claude.errors import ModelLoadError

_NUM_TOKENS = 12
_TOLERANCE = 1e-3  # of the largest logit, in float32
_COARSE_TOLERANCE = 0.15  # in 16 bits or quantised


@torch.inference_mode()
def prepare_model(model: PreTrainedModel, runner: Runner) -> dict[str, LayerShape]:
    """Redirect attention and fuse layers, in place, for this runner. Raises `ModelLoadError` when its results do not
    agree with the model's own.

    Returns the layers that adapters may change, by name.
    """
    model.eval()
    name = type(model).__name__
    is_exact = all(parameter.dtype == torch.float32 for parameter in model.parameters())
    limit = min(model.config.get_text_config().vocab_size, 1000)
    prompts = torch.randint(limit, (2, _NUM_TOKENS), generator=torch.Generator().manual_seed(0)).tolist()
    del prompts[1][-2:]  # so that the two decode together at different lengths
    try:
        model.set_attn_implementation("eager")
        expected = torch.stack([_reference(model, prompt) for prompt in prompts])
        attention.register()
        model.set_attn_implementation(attention.NAME)
        fuse_norms(model)
        fuse_projections(model, lambda: _mixed(runner, prompts))
        runner.model_changed()
        with adaptable_layers(model) as layers:
            actual = _mixed(runner, prompts)
        runner.model_changed()  # what was recorded under hooks goes as well
    except (ValueError, TypeError, AttributeError, RuntimeError, KeyError, NotImplementedError) as error:
        raise ModelLoadError(f"{name} cannot run on this engine: {error}") from error
    tolerance = _TOLERANCE if is_exact else _COARSE_TOLERANCE
    difference = (actual - expected).abs().max() / expected.abs().max()
    if not difference <= tolerance:  # also when it is NaN
        raise ModelLoadError(
            f"{name} cannot run on this engine: its logits differ by {difference:.1%} from the model's own. It may "
            "keep state outside of attention or use attention scores of its own."
        )
    return layers


def _reference(model: PreTrainedModel, prompt: list[int]) -> torch.Tensor:
    output = model(input_ids=torch.tensor([prompt], device=model.device), use_cache=False)
    logits: torch.Tensor = output.logits[0, -1].float()
    return logits


def _mixed(runner: Runner, prompts: list[list[int]]) -> torch.Tensor:
    """Last logits of both prompts, [2, vocabulary]: long chunks, then chunks with a past, then a decode each."""
    entries = [CacheEntry(prompt) for prompt in prompts]
    logits = torch.empty(0)
    read = [0, 0]
    for sizes in ((5, _NUM_TOKENS - 6), (_NUM_TOKENS - 6, 3), (1, 1)):
        parts = [
            Part(entry, start, entry.token_ids[start : start + size], is_wanted=True)
            for entry, start, size in zip(entries, read, sizes, strict=True)
        ]
        logits = runner.read(parts)
        read = [start + size for start, size in zip(read, sizes, strict=True)]
    is_used = runner.holds(entries[0])
    for entry in entries:
        runner.storage.free(entry)
    if not is_used:
        raise ValueError("its attention does not go through the library's attention interface")
    return logits
