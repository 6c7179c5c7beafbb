"""What a running training is, as a checkpoint, and back: weights, optimizer, random numbers, position."""

import random
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from mini_claude.errors import InvalidRequest
from mini_claude.training.checkpoint import Checkpoint
from mini_claude.training.training_state import TrainingState

_MOMENTS: Final = ("step", "exp_avg", "exp_avg_sq")  # AdamW's state of a parameter


def take_snapshot(
    run_id: str,
    state: TrainingState,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
) -> Checkpoint:
    """All of it, without copies: save it before the next step. Every process of the run has to call this.

    The schedule is a function of the step and the data position too, so `state.step` holds both.
    """
    scaler = accelerator.scaler
    return Checkpoint(
        step=state.step,
        weights={name: parameter.detach() for name, parameter in parameters.items()},
        optimizer={
            f"{name}.{moment}": optimizer.state[parameter][moment]
            for name, parameter in parameters.items()
            if parameter in optimizer.state
            for moment in _MOMENTS
        },
        state={
            "run_id": run_id,
            "training": state.to_json(),
            "random": gather_object([_random_states()]),  # one a process
            "scaler": None if scaler is None else scaler.state_dict(),
        },
    )


def restore_snapshot(
    checkpoint: Checkpoint,
    run_id: str,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
) -> TrainingState:
    """Put everything back in place. Raises `InvalidRequest` for a checkpoint of another run."""
    if checkpoint.state["run_id"] != run_id:
        raise InvalidRequest(
            "The job's folder holds checkpoints of a run with other data, arguments or processes; use a new folder, or "
            "the same ones again.",
            code="another_run",
        )
    restore_weights(checkpoint, parameters)
    for name, parameter in parameters.items():
        if f"{name}.step" in checkpoint.optimizer:
            step, *moments = (checkpoint.optimizer[f"{name}.{moment}"] for moment in _MOMENTS)
            # AdamW keeps its step counter on the CPU.
            values = (step, *(moment.to(parameter.device) for moment in moments))
            optimizer.state[parameter] = dict(zip(_MOMENTS, values, strict=True))
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
    _set_random_states(checkpoint.state["random"][accelerator.process_index])
    return TrainingState.from_json(checkpoint.state["training"])


@torch.no_grad()
def restore_weights(checkpoint: Checkpoint, parameters: Mapping[str, nn.Parameter]) -> None:
    """The trained weights alone."""
    for name, parameter in parameters.items():
        parameter.copy_(checkpoint.weights[name])


def seed_everything(seed: int) -> None:
    """Python, NumPy and torch, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _random_states() -> dict[str, Any]:
    version, numbers, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    return {
        "python": [version, list(numbers), gauss],
        "numpy": {**numpy_state, "state": {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist()}},
        "torch": _as_text(torch.get_rng_state()),
        "cuda": [_as_text(state) for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def _set_random_states(states: Mapping[str, Any]) -> None:
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    inner = states["numpy"]["state"]
    np.random.set_state({**states["numpy"], "state": {**inner, "key": np.array(inner["key"], dtype=np.uint32)}})
    torch.set_rng_state(_as_tensor(states["torch"]))
    for device, state in enumerate(states["cuda"]):
        torch.cuda.set_rng_state(_as_tensor(state), device)


def _as_text(state: torch.Tensor) -> str:
    return bytes(state.tolist()).hex()


def _as_tensor(text: str) -> torch.Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
