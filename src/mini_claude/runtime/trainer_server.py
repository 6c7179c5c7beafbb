"""The program of a trainer process: one job, from its row in the database to a version that can be served.

It outlives the server that started it. Killed at any point, it is started again and goes on: training from the last
complete checkpoint, and what comes after from a finished run, whose steps are not taken twice.
"""

import asyncio
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import msgspec

from mini_claude.data.adapters import AdapterRepository
from mini_claude.data.database import Database
from mini_claude.data.dataset_store import DatasetStore
from mini_claude.data.jobs import JobRepository
from mini_claude.data.models import ModelRepository
from mini_claude.data.records import JobState
from mini_claude.errors import (
    Conflict,
    ErrorInfo,
    InternalError,
    MiniClaudeError,
    NotFound,
    StorageError,
    StorageUnavailable,
    TrainerOutdated,
)
from mini_claude.models.catalog import BUILTIN
from mini_claude.runtime.adapter_requests import VERIFICATION_SECONDS, Base, VerifyRequest
from mini_claude.runtime.job_report import JobReport
from mini_claude.runtime.launches import TrainerLaunch
from mini_claude.runtime.liveness import ProcessIdentity
from mini_claude.runtime.memory_limit import memory_limit
from mini_claude.runtime.patience import patiently
from mini_claude.runtime.short_process import ShortProcessEnded, ShortProcessKilled, run_short
from mini_claude.types import ModelSource, ModelSpec
from mini_claude.utils.config import Settings
from mini_claude.utils.files import is_full
from mini_claude.utils.logging import configure_logging, get_logger
from mini_claude.utils.priority import lower_priority

log = get_logger(__name__)

NICE: Final = 10  # whoever chats meanwhile goes first
_CERTIFICATIONS: Final = 3  # of one adapter by one trainer, where the process of each is killed


class TrainerServer:
    """Runs one job."""

    def __init__(self, launch: TrainerLaunch, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._token = launch.token
        self._jobs = JobRepository(database)
        self._models = ModelRepository(database)
        self._adapters = AdapterRepository(database)
        own = ProcessIdentity.own()
        self._job = patiently(self._jobs.begin, launch.job_id, launch.token, own.pid, own.started)
        self._report = JobReport(self._jobs, launch.job_id, launch.token)

    def run(self) -> None:
        """To the job's last event. Raises `TrainerOutdated` when it is another trainer's job by now.

        Raises `StorageUnavailable` when the database stayed away. The job is running still as far as that knows; once
        it is back, the queue finds the trainer gone and starts another, which goes on from the last checkpoint.
        """
        try:
            reference = self._train()
        except (TrainerOutdated, StorageUnavailable):
            raise
        except MiniClaudeError as error:
            log.warning("job.failed", job_id=self._job.id, code=error.code)
            self._finish("failed", (type(error).__name__, error.info()))
        except Exception as error:
            log.exception("job.failed", job_id=self._job.id)
            fault: MiniClaudeError = InternalError("Training failed unexpectedly; the log of its trainer says why.")
            if isinstance(error, OSError) and is_full(error):
                folder = self._settings.data_dir
                fault = StorageError(
                    f"The disk of {folder} is full; free some space and resume the job, nothing is lost.",
                    code="disk_full",
                )
            self._finish("failed", (type(fault).__name__, fault.info()))
        else:
            state: JobState = "completed" if reference else "cancelled"
            self._finish(state, adapter=reference)
            log.info("job.ended", job_id=self._job.id, state=state)

    def _finish(self, state: JobState, error: tuple[str, ErrorInfo] | None = None, adapter: str | None = None) -> None:
        patiently(self._jobs.finish, self._job.id, self._token, state, error, adapter)

    def _train(self) -> str | None:
        """The reference of the result; None when the job was cancelled."""
        from mini_claude.models.materialize import materialize
        from mini_claude.models.model_factory import create_chat_model
        from mini_claude.training.callbacks import Callback, TimeLimitCallback
        from mini_claude.training.dataset_formats import read_examples
        from mini_claude.training.run import run_training

        job, settings = self._job, self._settings
        spec = self._spec(job.spec.model_name)
        self._report.tell("log", message=f"Loading {spec.name}.")
        base = materialize(spec, settings.models_dir, allow_download=False, hub_owners=settings.hub_owners)
        store = DatasetStore(settings.datasets_dir, settings.max_dataset_bytes, settings.dataset_quota_bytes)
        folder = settings.jobs_dir / job.id
        folder.mkdir(parents=True, exist_ok=True)
        callbacks: list[Callback] = [self._report]
        if settings.max_training_hours:
            callbacks.insert(0, TimeLimitCallback(settings.max_training_hours * 3600))
        with memory_limit(settings.max_training_gb):
            result = run_training(
                base,
                create_chat_model(spec, base),
                read_examples(store.path(job.spec.dataset_sha256)),
                job.spec.lora,
                job.spec.arguments,
                folder,
                callbacks,
            )
        if result.output_folder is None:
            return None
        if result.stop_reason == "time_limit":
            self._report.tell(
                "log",
                message=f"Ended after step {result.state.step}: a job of this server may train for "
                f"{settings.max_training_hours:g} hours.",
            )
        if result.data.dropped:
            self._report.tell("log", message=f"{len(result.data.dropped)} broken rows were left out.")
        if job.spec.arguments.method == "full":
            return self._register_model(spec, base, result.output_folder)
        held_out = result.data.held_out or result.data.train
        return self._register_adapter(spec, base, result.output_folder, result.metrics, _sequences(held_out))

    def _spec(self, name: str) -> ModelSpec:
        builtin = {spec.name: spec for spec in BUILTIN}
        spec = builtin.get(name) or patiently(self._models.find, name)
        if spec is None:
            raise NotFound(f"The model {name!r} was removed.", code="model_not_found", param="model_name")
        return spec

    def _register_adapter(
        self, spec: ModelSpec, base: Path, output: Path, metrics: dict[str, float], sequences: list[tuple[int, ...]]
    ) -> str:
        from mini_claude.training.adapter_folder import (
            AdapterFacts,
            environment,
            weights_sha256,
            write_facts,
            write_held_out,
        )

        job = self._job
        arguments = {"lora_config": asdict(job.spec.lora), "training_args": asdict(job.spec.arguments)}
        facts = AdapterFacts(
            spec.name, weights_sha256(base), job.spec.dataset_sha256, arguments, metrics, environment()
        )
        write_facts(output, facts)
        write_held_out(output, sequences)
        self._report.tell("log", message="Comparing the trainer, the engine and the exports.")
        certificate = self._certify(spec, output)
        if not certificate["passed"]:
            raise InternalError(
                f"The adapter did not pass its parity check: {certificate['reason']}", code="parity_failed"
            )
        self._report.tell("certificate", **certificate)
        target = self._settings.adapters_dir / job.id
        self._settings.adapters_dir.mkdir(exist_ok=True)
        if not target.exists():
            output.rename(target)
        version = patiently(
            self._adapters.add,
            job.owner,
            spec.name,
            job.spec.adapter_name,
            job.id,
            msgspec.to_builtins(facts),
            job.id,
        )
        patiently(self._adapters.certify, version, certificate)
        return version.reference

    def _certify(self, spec: ModelSpec, output: Path) -> dict[str, Any]:
        """In a process of its own: it loads the model several times. That this one is killed says nothing about the
        adapter, so another is started."""
        scratch = output.with_name("scratch")
        request = VerifyRequest(Base(spec, str(self._settings.models_dir)), str(output), str(scratch))
        for attempts_left in reversed(range(_CERTIFICATIONS)):
            shutil.rmtree(scratch, ignore_errors=True)  # of a trainer or a process that was killed here
            scratch.mkdir()
            try:
                answer = asyncio.run(run_short("verify_adapter", request, VERIFICATION_SECONDS))
                break
            except ShortProcessEnded as error:
                if not attempts_left or not isinstance(error, ShortProcessKilled):
                    message = f"The parity check came to no end: {error.message}."
                    raise InternalError(message, code="parity_failed") from error
                self._report.tell("log", message="The process of the comparison was killed; it is done again.")
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        certificate: dict[str, Any] = msgspec.json.decode(answer)
        return certificate

    def _register_model(self, spec: ModelSpec, base: Path, output: Path) -> str:
        """All weights were trained: the result is a model of its own, under the adapter's name."""
        from mini_claude.training.merge import COPIED_FILES

        job = self._job
        for name in COPIED_FILES:
            if (base / name).is_file() and not (output / name).exists():
                shutil.copyfile(base / name, output / name)
        source = ModelSource("folder", str(output))
        tuned = ModelSpec(job.spec.adapter_name, spec.family, (source,), f"{spec.name}, all weights tuned")
        patiently(self._add_model, tuned, output)
        return tuned.name

    def _add_model(self, tuned: ModelSpec, output: Path) -> None:
        known = self._models.find(tuned.name)
        if known is None:
            self._models.add(tuned)
        elif known.sources != tuned.sources:
            raise Conflict(f"There is a model {tuned.name!r} already; the result stays in {output}.")


def _sequences(examples: Any) -> list[tuple[int, ...]]:
    """Token ids of held-out examples; of a preference the better answer."""
    from mini_claude.training.examples import TokenizedExample

    return [each.token_ids if isinstance(each, TokenizedExample) else each.chosen.token_ids for each in examples]


def main() -> None:
    """Entry point of the process: a `TrainerLaunch` as one line of JSON on standard input."""
    launch = msgspec.json.decode(sys.stdin.buffer.readline(), type=TrainerLaunch)
    lower_priority(NICE)
    settings = Settings.model_validate(launch.settings)
    configure_logging(settings, "trainer")
    database = Database(launch.database_url)
    try:
        TrainerServer(launch, settings, database).run()
    except TrainerOutdated:
        log.warning("trainer.outdated", job_id=launch.job_id)
    except StorageUnavailable as error:
        log.error("trainer.left", job_id=launch.job_id, reason=error.message)
        sys.exit(1)
    finally:
        database.close()


if __name__ == "__main__":
    main()
