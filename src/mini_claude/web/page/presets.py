"""Three ways to train, for who does not want to decide about thirty settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Preset:
    """What differs from the defaults of `lora_config` and `training_args`."""

    info: str
    lora: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


DEFAULT: Final = "Balanced"
PRESETS: Final = {
    # One pass shows whether the data teaches anything; a small adapter with larger steps gets there in it.
    "Quick": Preset(
        "one pass over the data, to see whether it works",
        {"r": 8, "lora_alpha": 16},
        {"num_train_epochs": 1.0, "learning_rate": 5e-4},
    ),
    # The defaults: what PEFT's and TRL's guides begin with.
    "Balanced": Preset("three passes, right for most data"),
    # Small steps and room for more; measured often, and ended where held-out rows get worse (learning by heart).
    "Thorough": Preset(
        "up to eight passes in small steps; ends by itself when it gets no better",
        {"r": 32, "lora_alpha": 64, "lora_dropout": 0.05},
        {"num_train_epochs": 8.0, "learning_rate": 1e-4, "eval_steps": 20, "early_stopping_patience": 3},
    ),
}
