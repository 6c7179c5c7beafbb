"""A few questions out of a dataset, to see what training on it changed."""

from dataclasses import dataclass
from pathlib import Path

from mini_claude.training.dataset_formats import read_examples
from mini_claude.training.examples import Conversation, Example, PlainText, Preference, RowProblem
from mini_claude.types import Message

TEXT_CHARACTERS = 60  # of a text without turns: how much of its beginning is to be continued


@dataclass(frozen=True, slots=True)
class PromptsRequest:
    """The file, how many rows it has, and how many of them are wanted, spread evenly."""

    path: str
    num_rows: int
    num_prompts: int


@dataclass(frozen=True, slots=True)
class TrainingPrompt:
    """What was asked in a row and what the row says the answer should be; without `messages`, `text` is continued."""

    row: int
    messages: tuple[Message, ...]
    text: str
    expected: str


def prompts(request: PromptsRequest) -> tuple[TrainingPrompt, ...]:
    """No question twice, and none of rows that cannot be used. Raises `InvalidRequest` where it is no dataset."""
    distance = max(1, request.num_rows // request.num_prompts)
    found: list[TrainingPrompt] = []
    for example in read_examples(Path(request.path)):
        if isinstance(example, RowProblem) or example.row <= distance * len(found):
            continue
        prompt = _prompt(example)
        if prompt is None or any((each.messages, each.text) == (prompt.messages, prompt.text) for each in found):
            continue
        found.append(prompt)
        if len(found) == request.num_prompts:
            break
    return tuple(found)


def _prompt(example: Example) -> TrainingPrompt | None:
    match example:
        case Conversation(messages=messages, row=row, unlearned=unlearned):
            for index, message in enumerate(messages):
                if message.role == "assistant" and index not in unlearned:
                    return TrainingPrompt(row, messages[:index], "", message.content) if index else None
            return None
        case Preference(prompt=messages, chosen=chosen, row=row):
            return TrainingPrompt(row, messages, "", chosen)
        case PlainText(text=text, row=row):
            beginning = text[:TEXT_CHARACTERS].rpartition(" ")[0] or text[:TEXT_CHARACTERS]
            return TrainingPrompt(row, (), beginning, text[len(beginning) :])
