"""All of a run's examples as tokens: what is trained on, what is held out, and what could not be used."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mini_claude.errors import InvalidRequest
from mini_claude.models.base_model import ChatModel
from mini_claude.training.arguments import TrainingArguments
from mini_claude.training.examples import Example, RowProblem, TokenizedExample, TokenizedPreference
from mini_claude.training.held_out import digest, split
from mini_claude.training.tokenizing import tokenize

_MAX_TOLD: Final = 20


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Either all `TokenizedExample` or all `TokenizedPreference`. `sha256` is of all tokens, in hexadecimal digits."""

    train: tuple[TokenizedExample | TokenizedPreference, ...]
    held_out: tuple[TokenizedExample | TokenizedPreference, ...]
    dropped: tuple[RowProblem, ...]
    sha256: str


def prepare_data(
    examples: Iterable[Example | RowProblem], chat_model: ChatModel, arguments: TrainingArguments
) -> TrainingData:
    """Tokenise and split.

    Raises `InvalidRequest`: code "broken_rows" unless they are to be dropped, "no_examples", and for rows that are not
    what the objective needs.
    """
    tokenized: list[TokenizedExample | TokenizedPreference] = []
    problems: list[RowProblem] = []
    for example in examples:
        result = example if isinstance(example, RowProblem) else tokenize(example, chat_model, arguments.max_length)
        if isinstance(result, RowProblem):
            problems.append(result)
        else:
            tokenized.append(result)
    if problems and not arguments.drop_broken_rows:
        raise _broken(problems)
    if not tokenized:
        raise InvalidRequest("The data holds nothing to train on.", code="no_examples", param="dataset_path")
    wanted = TokenizedPreference if arguments.objective == "dpo" else TokenizedExample
    if not all(isinstance(example, wanted) for example in tokenized):
        raise InvalidRequest(
            "Objective dpo needs rows with a chosen and a rejected answer, and sft needs rows without.",
            param="objective",
        )
    train, held_out = split(tokenized, arguments.eval_ratio)
    sha256 = hashlib.sha256(b"".join(map(digest, tokenized))).hexdigest()
    return TrainingData(tuple(train), tuple(held_out), tuple(problems), sha256)


def _told(problem: RowProblem) -> str:
    line = "" if problem.line is None else f" (line {problem.line})"
    return f"row {problem.row}{line}: {problem.reason.removesuffix('.')}"


def _broken(problems: list[RowProblem]) -> InvalidRequest:
    told = "; ".join(map(_told, problems[:_MAX_TOLD]))
    more = f"; and {len(problems) - _MAX_TOLD} more" if len(problems) > _MAX_TOLD else ""
    return InvalidRequest(
        f"Rows that cannot be used: {len(problems)}. {told}{more}. Mend them, or set drop_broken_rows.",
        code="broken_rows",
        param="drop_broken_rows",
    )
