"""`mini-claude train` and `mini-claude jobs ...`: start a training job, watch it, stop it, let it go on."""

import importlib.resources
import time
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from mini_claude.errors import MiniClaudeError
from mini_claude.terminal.datasets import upload
from mini_claude.terminal.server import ServerClient, running_server
from mini_claude.training import demo as demo_data
from mini_claude.utils.config import Settings

POLL_SECONDS: Final = 0.5
ENDED: Final = ("completed", "failed", "cancelled")

jobs_app = typer.Typer(no_args_is_help=True, help="Training jobs: list, show, cancel, resume.")
console = Console()


def train(
    dataset: Annotated[str | None, typer.Argument(help="A dataset's name, or a file to upload first.")] = None,
    model: Annotated[str | None, typer.Option(help="The base model; the default one if left out.")] = None,
    name: Annotated[str | None, typer.Option(help="What the adapter is called; like the dataset if left out.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Steps, instead of passes.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The largest learning rate.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples in a step.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the LoRA update.")] = None,
    drop_broken_rows: Annotated[bool, typer.Option(help="Leave broken rows out instead of refusing the data.")] = False,
    demo: Annotated[bool, typer.Option(help="Teach the model who it is, with a small dataset of our own.")] = False,
) -> None:
    """Tune a model on your data and watch; Ctrl-C stops watching, not the job."""
    with running_server(Settings()) as client:
        if demo:
            with importlib.resources.as_file(
                importlib.resources.files("mini_claude.training") / demo_data.FILE_NAME
            ) as path:
                dataset = upload(client, path, demo_data.DATASET)["name"]
        elif dataset is None:
            raise MiniClaudeError("Name a dataset, or a file with your data; or try --demo.")
        elif Path(dataset).is_file():
            dataset = upload(client, Path(dataset), None)["name"]
        given = {
            "num_train_epochs": epochs,
            "max_steps": max_steps,
            "learning_rate": learning_rate,
            "per_device_train_batch_size": batch_size,
            "drop_broken_rows": drop_broken_rows or None,
        }
        arguments = (dict(demo_data.ARGUMENTS) if demo else {}) | {k: v for k, v in given.items() if v is not None}
        body: dict[str, Any] = {"dataset_path": dataset, "training_args": arguments}
        body |= {"model_name": model} if model else {}
        body |= {"adapter_name": name or (demo_data.ADAPTER if demo else None)}
        body |= {"lora_config": {"r": rank, "lora_alpha": 2 * rank}} if rank else {}
        job = client.call("POST", "/api/v1/training/jobs", body)
        watch(client, job["id"])
        if demo:
            _compare(client, client.call("GET", f"/api/v1/training/jobs/{job['id']}"))


def watch(client: ServerClient, job_id: str) -> None:
    """Show a job until it ends or Ctrl-C. Raises `MiniClaudeError` when it fails."""
    console.print(f"job {job_id}", style="dim", markup=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
    )
    after = 0
    try:
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("pending", total=None, numbers="")
            while True:
                answer = client.call("GET", f"/api/v1/training/jobs/{job_id}/progress?after={after}")
                job = answer["job"]
                for event in answer["events"]:
                    after = event["number"]
                    if (line := _line(event)) is not None:
                        bar.console.print(line, style="dim", markup=False)
                progress = job["progress"]
                bar.update(
                    task,
                    description=job["state"],
                    total=progress.get("num_steps"),
                    completed=progress.get("step", 0),
                    numbers=_numbers(progress),
                )
                if job["state"] in ENDED and not answer["events"]:
                    break
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        console.print(f"The job goes on; `mini-claude jobs show {job_id}` watches it again.", markup=False)
        raise typer.Exit from None
    _report(job)


def _line(event: dict[str, Any]) -> str | None:
    """What an event tells a person, or None where the bar shows it."""
    data = event["data"]
    match event["type"]:
        case "evaluation":
            return f"held-out loss {data['eval_loss']:.4f} at step {data['step']}"
        case "certificate":
            return f"parity: {data['reason']}"
        case "log":
            return str(data["message"])
        case "state" if data.get("reason"):
            return f"{data['state']}: {data['reason']}"
        case _:
            return None


def _numbers(progress: dict[str, Any]) -> str:
    parts = []
    if progress.get("loss") is not None:
        parts.append(f"loss {progress['loss']:.3f}")
    if progress.get("tokens_per_second"):
        parts.append(f"{progress['tokens_per_second']:.0f} tokens/s")
    return "  ".join(parts)


def _report(job: dict[str, Any]) -> None:
    if job["state"] == "failed":
        raise MiniClaudeError(f"The job failed: {job['error']['message']}")
    console.print(
        f"{job['state']} after {job['ended_at'] - (job['started_at'] or job['ended_at']):.0f} s", markup=False
    )
    if job["adapter"]:
        console.print(f"chat with it: mini-claude chat --model {job['adapter']}", markup=False)


def _compare(client: ServerClient, job: dict[str, Any]) -> None:
    for model in (job["model_name"], job["adapter"]):
        body = {"messages": [{"role": "user", "content": demo_data.QUESTION}], "temperature": 0, "max_tokens": 48}
        answer = client.call("POST", "/api/v1/chat/completions", body | {"model": model})
        console.print(f"{model}\n  {demo_data.QUESTION}  {answer['response']}", markup=False)


@jobs_app.command("list")
def list_jobs() -> None:
    """Show your jobs, newest first."""
    table = Table("id", "state", "model", "adapter", "dataset", "step", box=None, pad_edge=False)
    with running_server(Settings()) as client:
        for job in client.call("GET", "/api/v1/training/jobs")["jobs"]:
            progress = job["progress"]
            step = f"{progress['step']}/{progress['num_steps']}" if "step" in progress else ""
            adapter = job["adapter"] or job["adapter_name"]
            table.add_row(job["id"], job["state"], job["model_name"], adapter, job["dataset_path"], step)
    console.print(table)


JobId = Annotated[str, typer.Argument(help="The id that `list` shows.")]


@jobs_app.command()
def show(job_id: JobId) -> None:
    """Watch a job to its end."""
    with running_server(Settings()) as client:
        watch(client, job_id)


@jobs_app.command()
def cancel(job_id: JobId) -> None:
    """Cancel a job; a running one ends after its step."""
    with running_server(Settings()) as client:
        console.print(client.call("DELETE", f"/api/v1/training/jobs/{job_id}")["state"])


@jobs_app.command()
def resume(job_id: JobId) -> None:
    """Let a failed or cancelled job go on from its last checkpoint, and watch it."""
    with running_server(Settings()) as client:
        client.call("POST", f"/api/v1/training/jobs/{job_id}/resume")
        watch(client, job_id)
