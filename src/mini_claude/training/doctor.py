"""What a training job would see of a dataset, token by token, and what it would cost: told before the job starts.

It uses the same reader and the same tokenising as the trainer, so what it shows is what is learned.
"""

import codecs
import hashlib
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec

from mini_claude.errors import InvalidRequest
from mini_claude.models.base_model import ChatModel
from mini_claude.models.echo_model import EchoModel
from mini_claude.training.arguments import Objective
from mini_claude.training.dataset_formats import detect, read_examples
from mini_claude.training.doctor_report import (
    DoctorReport,
    DoctorRequest,
    Duplicate,
    Estimate,
    Examination,
    LengthCount,
    Part,
    Sample,
    SampleToken,
)
from mini_claude.training.examples import Example, RowProblem, TokenizedExample, TokenizedPreference
from mini_claude.training.tokenizing import tokenize
from mini_claude.types import ModelSpec
from mini_claude.utils.config import Settings

EXAMINED_SECONDS: Final = 60.0  # for tokenising; what is left after that is not looked at
MAX_TOLD: Final = 20  # broken and duplicate rows that are named; all are counted
MAX_SHOWN_TOKENS: Final = 20_000  # the row with which they are reached is the last that is shown
MEASURED_STEPS: Final = 2
_MEASURED_EXAMPLES: Final = 512


class _Tally:
    """Counts of what has been tokenised so far."""

    def __init__(self, chat_model: ChatModel, wanted: Examination) -> None:
        self.examples: list[TokenizedExample | TokenizedPreference] = []  # to measure with
        self.num_rows = self.num_examples = self.num_tokens = self.num_supervised = 0
        self.num_broken = self.num_truncated = self.num_truncated_tokens = 0
        self.num_duplicates = self.longest = 0
        self.problems: list[RowProblem] = []
        self.duplicates: list[Duplicate] = []
        self.samples: list[Sample] = []
        self.lengths: Counter[int] = Counter()
        self._num_shown = 0
        self._first_rows: dict[bytes, int] = {}
        self._chat_model = chat_model
        self._wanted = wanted

    def add(self, example: Example | RowProblem) -> None:
        """Take in the next row."""
        self.num_rows += 1
        if isinstance(example, RowProblem):
            return self._reject(example)
        tokenized = tokenize(example, self._chat_model, self._wanted.arguments.max_length)
        if isinstance(tokenized, RowProblem):
            return self._reject(tokenized)
        self._compare(example)
        if len(self.examples) < _MEASURED_EXAMPLES:
            self.examples.append(tokenized)
        parts = _parts(tokenized)
        shown = self.num_examples < self._wanted.num_rows and self._num_shown < MAX_SHOWN_TOKENS
        self.num_examples += 1
        for part, one in parts.items():
            self._count(one)
            if shown:
                self.samples.append(self._sample(part, one))
                self._num_shown += len(one.token_ids)
        return None

    def _reject(self, problem: RowProblem) -> None:
        self.num_broken += 1
        self.problems += [problem] if len(self.problems) < MAX_TOLD else []

    def _compare(self, example: Example) -> None:
        content = msgspec.json.encode(asdict(replace(example, row=0)))
        first = self._first_rows.setdefault(hashlib.blake2b(content, digest_size=16).digest(), example.row)
        if first != example.row:
            self.num_duplicates += 1
            self.duplicates += [Duplicate(example.row, first)] if len(self.duplicates) < MAX_TOLD else []

    def _count(self, example: TokenizedExample) -> None:
        length = len(example.token_ids) + example.truncated
        self.num_tokens += len(example.token_ids)
        self.num_supervised += sum(example.supervised)
        self.num_truncated += example.truncated > 0
        self.num_truncated_tokens += example.truncated
        self.longest = max(self.longest, length)
        self.lengths[1 << max(length - 1, 0).bit_length()] += 1

    def _sample(self, part: Part, example: TokenizedExample) -> Sample:
        codec = self._chat_model.codec
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode  # a character may take several tokens
        tokens = tuple(
            SampleToken(token_id, decode(codec.token_bytes(token_id)), supervised)
            for token_id, supervised in zip(example.token_ids, example.supervised, strict=True)
        )
        return Sample(example.row, part, tokens, example.truncated)


def _parts(tokenized: TokenizedExample | TokenizedPreference) -> dict[Part, TokenizedExample]:
    if isinstance(tokenized, TokenizedPreference):
        return {"chosen": tokenized.chosen, "rejected": tokenized.rejected}
    return {"example": tokenized}


def examine(request: DoctorRequest) -> DoctorReport:
    """Look at the dataset as the trainer would.

    Raises `InvalidRequest` where nothing could be learned (code "no_supervised_tokens"), `ModelLoadError`.
    """
    settings = Settings.model_validate(request.settings)
    chat_model, folder = _open(request.spec, settings)
    path = Path(request.path)
    container, data_format = detect(path)
    tally = _Tally(chat_model, request.wanted)
    for example in _until_time_is_up(read_examples(path)):
        tally.add(example)
    if not tally.num_examples:
        raise _nothing_to_learn(tally)
    report = DoctorReport(
        model=request.spec.name,
        container=container,
        format=data_format,
        max_length=request.wanted.arguments.max_length,
        num_rows=tally.num_rows,
        complete=tally.num_rows >= request.num_rows,
        num_broken=tally.num_broken,
        problems=tuple(tally.problems),
        num_examples=tally.num_examples,
        num_tokens=tally.num_tokens,
        num_supervised_tokens=tally.num_supervised,
        supervised_share=tally.num_supervised / tally.num_tokens,
        num_truncated=tally.num_truncated,
        num_truncated_tokens=tally.num_truncated_tokens,
        num_duplicates=tally.num_duplicates,
        duplicates=tuple(tally.duplicates),
        longest=tally.longest,
        lengths=tuple(LengthCount(up_to, tally.lengths[up_to]) for up_to in sorted(tally.lengths)),
        samples=tuple(tally.samples),
    )
    if not request.wanted.measure:
        return report
    return replace(report, estimate=_estimate(report, tally, request, folder))


def _open(spec: ModelSpec, settings: Settings) -> tuple[ChatModel, Path | None]:
    if settings.engine == "echo":
        return EchoModel(spec.name), None
    from mini_claude.models.materialize import materialize
    from mini_claude.models.model_factory import create_chat_model

    folder = materialize(spec, settings.models_dir, allow_download=False, hub_owners=settings.hub_owners)
    return create_chat_model(spec, folder), folder


def _until_time_is_up(examples: Iterator[Example | RowProblem]) -> Iterator[Example | RowProblem]:
    end = time.monotonic() + EXAMINED_SECONDS
    while time.monotonic() < end and (some := tuple(islice(examples, 16))):
        yield from some


def _nothing_to_learn(tally: _Tally) -> InvalidRequest:
    first = f": row {tally.problems[0].row}: {tally.problems[0].reason}" if tally.problems else ""
    return InvalidRequest(
        f"There is nothing to learn from this dataset, since none of {tally.num_rows} rows can be used{first}",
        code="no_supervised_tokens",
        param="name",
    )


def _estimate(report: DoctorReport, tally: _Tally, request: DoctorRequest, folder: Path | None) -> Estimate:
    """A job's time from a few real steps: training by tokens, evaluation as half of that (no backward pass)."""
    if folder is None:
        raise InvalidRequest("The echo engine has no weights to measure with.", param="measure")
    from mini_claude.training.measure import measure  # imports torch

    arguments = request.wanted.arguments
    # Preferences are learned by DPO and nothing else is; accumulated batches cost as much as they do alone.
    objective: Objective = "dpo" if report.format == "preference" else "sft"
    taken = replace(arguments, objective=objective, gradient_accumulation_steps=1)
    measured = measure(folder, tally.examples, request.wanted.lora, taken, MEASURED_STEPS)
    seconds_per_step = measured.seconds_per_step * arguments.gradient_accumulation_steps
    num_tokens = report.num_tokens * request.num_rows / report.num_rows
    seconds = num_tokens * (1 - arguments.eval_ratio) * arguments.num_train_epochs / measured.tokens_per_second
    if arguments.max_steps:
        seconds = arguments.max_steps * seconds_per_step
    num_steps = max(1, math.ceil(seconds / seconds_per_step))
    num_evaluations = 2 + (num_steps // arguments.eval_steps if arguments.eval_steps else 0)
    seconds += num_evaluations * num_tokens * arguments.eval_ratio / measured.tokens_per_second / 2
    return Estimate(seconds, num_steps, seconds_per_step, measured.tokens_per_second, measured.peak_memory_bytes)
