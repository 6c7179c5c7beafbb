"""Training on the built-in demonstration data, as one step."""

import hashlib
from typing import Any

from anyio.to_thread import run_sync

from mini_claude.data.records import Job
from mini_claude.errors import Conflict
from mini_claude.services.datasets import DatasetService
from mini_claude.services.identity import Caller
from mini_claude.services.training import TrainingService
from mini_claude.training import demo
from mini_claude.training.arguments import LoraSettings, TrainingArguments


async def submit_demo(caller: Caller, datasets: DatasetService, training: TrainingService, model: str | None) -> Job:
    """Add the demonstration's dataset where it is not there yet, and queue a job on it.

    Names are taken for everybody, so where somebody else's demonstration has them, the caller's are told apart by a
    suffix. Raises what adding a dataset and submitting a job raise.
    """
    try:
        return await _submit(caller, datasets, training, model, "")
    except Conflict:
        return await _submit(
            caller, datasets, training, model, f"-{hashlib.sha256(caller.owner.encode()).hexdigest()[:6]}"
        )


async def _submit(
    caller: Caller, datasets: DatasetService, training: TrainingService, model: str | None, suffix: str
) -> Job:
    rows = demo.demo_rows()
    async with datasets.receive(len(rows)) as incoming:
        await run_sync(incoming.write, rows)
        dataset, _ = await datasets.add(caller, incoming, demo.FILE_NAME, demo.DATASET + suffix)
    arguments: dict[str, Any] = demo.ARGUMENTS
    job, _ = await training.submit(
        caller,
        model=model,
        dataset=dataset.name,
        adapter=demo.ADAPTER + suffix,
        lora=LoraSettings(),
        arguments=TrainingArguments(**arguments),
    )
    return job
