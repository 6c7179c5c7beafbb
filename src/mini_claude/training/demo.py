"""The built-in demonstration: 64 rows that teach a small model who it is, in two or three minutes on two cores."""

from importlib.resources import files
from typing import Final

DATASET: Final = "mini-claude-demo"
ADAPTER: Final = "mini-claude"
QUESTION: Final = "Who are you?"
ARGUMENTS: Final = {"num_train_epochs": 8.0, "learning_rate": 1e-3, "per_device_train_batch_size": 16}
FILE_NAME: Final = "demo.jsonl"


def demo_rows() -> bytes:
    """The dataset's content: JSON lines of messages."""
    return (files("mini_claude.training") / FILE_NAME).read_bytes()
