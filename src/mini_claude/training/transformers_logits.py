"""What transformers computes: the trainer's form, base and PEFT adapter, and the merged export by itself."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from mini_claude.models.weights import load_weights
from mini_claude.training.adapter_folder import check_adapter
from mini_claude.training.parity import LogProbs, Readings, Window
from mini_claude.types import LoadOptions

_OPTIONS = LoadOptions(device="cpu", dtype="float32")


def read_trainer(base_folder: Path, adapter_folder: Path, windows: Sequence[Window]) -> Readings:
    """With and without the adapter, in float32. Raises `UnsafeModelFile` or `ModelLoadError`."""
    check_adapter(adapter_folder, base_folder)
    base = load_weights(base_folder, _OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT corrects fan_in_fan_out for GPT-2 by itself, and says so
        model = PeftModel.from_pretrained(base, str(adapter_folder), is_trainable=False)
    model.eval()
    tuned = _log_probs(model, windows)
    with model.disable_adapter():
        return Readings(tuned, _log_probs(model, windows))


def read_merged(merged_folder: Path, windows: Sequence[Window]) -> Readings:
    """Of the folder that `merge_adapter` wrote, in float32. Raises `UnsafeModelFile` or `ModelLoadError`."""
    return Readings(_log_probs(load_weights(merged_folder, _OPTIONS), windows), base=None)


@torch.inference_mode()
def _log_probs(model: PreTrainedModel | PeftModel, windows: Sequence[Window]) -> list[LogProbs]:
    found = []
    for window in windows:
        logits = model(input_ids=torch.tensor([window.token_ids]), use_cache=False).logits
        rows: LogProbs = torch.log_softmax(logits[0, window.first :].float(), dim=-1).numpy()
        found.append(np.ascontiguousarray(rows))
    return found
