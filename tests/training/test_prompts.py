"""Questions out of a dataset."""

import json
from pathlib import Path

import pytest

from mini_claude.training.prompts import PromptsRequest, TrainingPrompt, prompts
from mini_claude.types import Message


def taken(tmp_path: Path, rows: list[object], num_prompts: int) -> tuple[TrainingPrompt, ...]:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return prompts(PromptsRequest(str(path), len(rows), num_prompts))


def turns(*texts: str) -> dict[str, object]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]}


def test_questions_are_spread_over_the_rows(tmp_path: Path) -> None:
    found = taken(tmp_path, [turns(f"Q{row}", f"A{row}") for row in range(1, 41)], 4)
    assert [prompt.row for prompt in found] == [1, 11, 21, 31]
    assert found[1] == TrainingPrompt(11, (Message("user", "Q11"),), "", "A11")


def test_no_question_comes_twice_and_broken_rows_are_passed_over(tmp_path: Path) -> None:
    rows = [turns("Same", "A"), turns("Same", "B"), {"messages": []}, turns("Other", "C")]
    assert [prompt.row for prompt in taken(tmp_path, rows, 4)] == [1, 4]


def test_a_preference_asks_its_prompt_and_expects_the_better_answer(tmp_path: Path) -> None:
    (found,) = taken(tmp_path, [{"prompt": "Why?", "chosen": "Because.", "rejected": "No."}], 1)
    assert (found.messages, found.expected) == ((Message("user", "Why?"),), "Because.")


def test_a_text_is_continued_from_between_two_words(tmp_path: Path) -> None:
    text = "word " * 30
    (found,) = taken(tmp_path, [{"text": text}], 1)
    assert not found.messages
    assert found.text + found.expected == text.strip() or found.text + found.expected == text
    assert found.text.endswith("word")


@pytest.mark.parametrize("num_prompts", [1, 5])
def test_fewer_rows_than_wanted_give_what_there_is(tmp_path: Path, num_prompts: int) -> None:
    assert len(taken(tmp_path, [turns("Q", "A")], num_prompts)) == 1
