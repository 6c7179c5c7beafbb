"""What the settings of a training job are called on the page, in the order and groups of its form."""

from collections.abc import Mapping
from typing import Final

GROUPS: Final[Mapping[str, Mapping[str, str]]] = {
    "How long and how fast": {
        "num_train_epochs": "Passes over the data",
        "max_steps": "Steps",
        "learning_rate": "Learning rate",
        "per_device_train_batch_size": "Examples in a batch",
        "gradient_accumulation_steps": "Batches in a step",
        "max_length": "Longest example",
    },
    "What is learned": {
        "method": "Method",
        "objective": "Objective",
        "dpo_beta": "DPO beta",
        "r": "Rank of the adapter",
        "lora_alpha": "Alpha",
        "lora_dropout": "Dropout",
        "target_modules": "Layers",
        "use_rslora": "rsLoRA",
        "use_dora": "DoRA",
    },
    "Measuring": {
        "eval_ratio": "Held-out part",
        "eval_steps": "Steps between measurements",
        "early_stopping_patience": "Patience",
        "logging_steps": "Steps between reports",
    },
    "How a step is taken": {
        "lr_scheduler_type": "Course of the learning rate",
        "warmup_ratio": "Warm-up",
        "weight_decay": "Weight decay",
        "max_grad_norm": "Longest gradient",
        "adam_beta1": "Adam beta 1",
        "adam_beta2": "Adam beta 2",
        "adam_epsilon": "Adam epsilon",
        "seed": "Seed",
    },
    "Memory and disk": {
        "dtype": "Precision",
        "quantization": "Quantization of the base",
        "gradient_checkpointing": "Gradient checkpointing",
        "batching": "Batching",
        "save_steps": "Steps between checkpoints",
        "save_minutes": "Minutes between checkpoints",
        "save_total_limit": "Checkpoints kept",
        "max_checkpoint_bytes": "Largest checkpoint",
    },
}
LABELS: Final[Mapping[str, str]] = {name: label for group in GROUPS.values() for name, label in group.items()}
