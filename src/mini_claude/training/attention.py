"""Attention inside a flat row: each token sees the tokens of its own text that come before it, and itself.

Plugged into Hugging Face models by transformers' attention interface, which calls the function registered under
`NAME` with what its own implementations get, and passes `attention_row` on from the model's keyword arguments.
"""

from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from mini_claude.errors import ModelLoadError
from mini_claude.training.examples import TokenizedExample
from mini_claude.training.flat_row import FlatRow

NAME = "mini_claude_training"
_TOLERANCE = 1e-3  # of the largest logit, in float32
_COARSE_TOLERANCE = 0.15  # in 16 bits or quantised


class AttentionRow:
    """Who sees whom in one row; masks are made once and shared by all layers."""

    def __init__(self, row: FlatRow, device: torch.device) -> None:
        self._row = row
        self._device = device
        self._masks: dict[tuple[int | None, torch.dtype], torch.Tensor | None] = {}

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """[tokens, tokens], 0 where a query (first axis) may look and -inf elsewhere; None where it is plainly causal.

        With a window, a token sees itself and the `window` - 1 tokens before it.
        """
        key = (window, dtype)
        if key not in self._masks:
            num_tokens = len(self._row.token_ids)
            unneeded = self._row.is_one_text and (window is None or num_tokens <= window)
            self._masks[key] = None if unneeded else self._make_mask(window, dtype)
        return self._masks[key]

    def _make_mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        row = self._row
        sees = np.eye(len(row.parents), dtype=bool)
        for token, parent in enumerate(row.parents):
            if parent >= 0:
                sees[token] |= sees[parent]
        if window is not None:
            positions = np.array(row.positions)
            sees &= positions[:, None] - positions[None, :] < window
        hidden = torch.from_numpy(~sees).to(self._device)
        return torch.zeros(hidden.shape, dtype=dtype, device=self._device).masked_fill_(hidden, float("-inf"))


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _attention_mask: torch.Tensor | None,
    *,
    attention_row: AttentionRow,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_unused: object,
) -> tuple[torch.Tensor, None]:
    """query is [1, heads, tokens, head_dim], key and value [1, kv_heads, ...]; the result [1, tokens, heads, head_dim].

    `softcap` (Gemma 2) squashes the scores by tanh; `s_aux` (gpt-oss) are attention sinks, [heads].
    """
    dropout = dropout if module.training else 0.0
    mask = attention_row.mask(sliding_window, query.dtype)
    if softcap is not None or s_aux is not None:
        return _attend_by_hand(query, key, value, mask, dropout, scaling, softcap, s_aux), None
    grouped = key.shape[1] != query.shape[1]
    if grouped and query.device.type != "cpu":  # kernels for GPUs take a mask or grouped heads, not both
        key, value = _repeat_heads(query, key, value)
        grouped = False
    output = scaled_dot_product_attention(
        query, key, value, mask, dropout_p=dropout, is_causal=mask is None, scale=scaling, enable_gqa=grouped
    )
    return output.transpose(1, 2), None


def _attend_by_hand(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """softmax(cap(q k^T * scaling)) v, written out for the models whose scores need more than a kernel offers."""
    num_tokens = query.shape[2]
    if mask is None:
        mask = torch.full((num_tokens, num_tokens), float("-inf"), dtype=query.dtype, device=query.device).triu(1)
    key, value = _repeat_heads(query, key, value)
    scores = query @ key.transpose(2, 3) * (query.shape[3] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores + mask
    if sinks is not None:  # a score that takes probability and gives no value
        scores = torch.cat((scores, sinks.view(1, -1, 1, 1).expand(1, -1, num_tokens, 1)), dim=3)
    weights = torch.softmax(scores, dim=3, dtype=torch.float32).to(query.dtype)[..., :num_tokens]
    return (torch.nn.functional.dropout(weights, dropout) @ value).transpose(1, 2)


def _repeat_heads(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    group = query.shape[1] // key.shape[1]
    return key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)


def forward(model: Any, row: FlatRow) -> torch.Tensor:
    """Float32 logits [targets, vocabulary] of the row's predictors.

    The LM head is the largest matmul of a small model: it sees the positions that are supervised and no others.
    """
    device = model.device
    output = model(
        input_ids=torch.tensor([row.token_ids], device=device),
        position_ids=torch.tensor([row.positions], device=device),
        use_cache=False,
        logits_to_keep=torch.tensor(row.predictors, device=device),
        attention_row=AttentionRow(row, device),
    )
    logits: torch.Tensor = output.logits[0].float()
    return logits


@torch.no_grad()
def use_flat_rows(model: PreTrainedModel) -> None:
    """Redirect the model's attention to rows.

    Two texts in one row must get the logits that the model's own attention gives to each alone. Raises
    `ModelLoadError` where they do not: the model keeps state outside of attention (Mamba), or biases its scores in a
    way of its own (ALiBi).
    """
    name = type(model).__name__
    limit = min(model.config.get_text_config().vocab_size, 1000)
    token_ids = torch.randint(limit, (20,), generator=torch.Generator().manual_seed(0)).tolist()
    texts = [token_ids[:4] + token_ids[4:13], token_ids[:4] + token_ids[13:]]
    row = FlatRow()
    for text in texts:
        row.add(TokenizedExample((*text, 0), (False,) * len(text) + (True,), row=0))
    try:
        model.set_attn_implementation("eager")
        expected = torch.stack([_reference(model, text) for text in texts])
        AttentionInterface.register(NAME, _attend)
        model.set_attn_implementation(NAME)
        actual = forward(model, row)
    except (ValueError, TypeError, AttributeError, RuntimeError, KeyError, NotImplementedError) as error:
        raise ModelLoadError(f"{name} cannot be trained here: {error}") from error
    is_exact = all(parameter.dtype == torch.float32 for parameter in model.parameters())
    difference = (actual - expected).abs().max() / expected.abs().max()
    if not difference <= (_TOLERANCE if is_exact else _COARSE_TOLERANCE):  # also when it is NaN
        raise ModelLoadError(
            f"{name} cannot be trained here: its logits differ by {difference:.1%} from the model's own when two texts "
            "share a row. It may keep state outside of attention or use attention scores of its own."
        )


def _reference(model: PreTrainedModel, token_ids: list[int]) -> torch.Tensor:
    output = model(input_ids=torch.tensor([token_ids], device=model.device), use_cache=False)
    logits: torch.Tensor = output.logits[0, -1].float()
    return logits
