"""What each of several processes runs in `test_two_processes_compute_what_one_does`."""

import sys
from pathlib import Path

from tests.training.tiny_training import conversations, train

if __name__ == "__main__":
    model_folder, job_folder = map(Path, sys.argv[1:])
    train(
        model_folder,
        job_folder,
        examples=conversations(41),  # 37 are trained on: in one of the four steps a process has nothing to do
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        max_steps=4,
    )
