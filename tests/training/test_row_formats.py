"""What each format's rows give, and why a row gives nothing."""

from typing import Any

import pytest

from mini_claude.training.examples import Conversation, DatasetFormat, PlainText, Preference
from mini_claude.training.row_formats import UnusableRow, example_of, fits_columns, format_of
from mini_claude.types import Message

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello!"}
HI, HELLO = Message("user", "Hi"), Message("assistant", "Hello!")


def turn(role: str, content: Any = "x", **rest: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **rest}


@pytest.mark.parametrize(
    ("row", "data_format", "messages"),
    [
        ({"messages": [USER, ASSISTANT]}, "messages", (HI, HELLO)),
        ([USER, ASSISTANT], "messages", (HI, HELLO)),
        ({"conversations": [USER, ASSISTANT], "id": 7}, "messages", (HI, HELLO)),
        ({"messages": [turn("developer", "Be"), USER, ASSISTANT]}, "messages", (Message("system", "Be"), HI, HELLO)),
        ({"messages": [USER, ASSISTANT], "system": "Be"}, "messages", (Message("system", "Be"), HI, HELLO)),
        ({"messages": [USER, ASSISTANT, USER]}, "messages", (HI, HELLO, HI)),
        ({"messages": [USER, {**ASSISTANT, "weight": 1}]}, "messages", (HI, HELLO)),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}], "system": ""},
            "sharegpt",
            (HI, HELLO),
        ),
        (
            {
                "conversation": [
                    {"from": "system", "value": "Be"},
                    {"from": "user", "value": "Hi"},
                    {"from": "assistant", "value": "Hello!"},
                ]
            },
            "sharegpt",
            (Message("system", "Be"), HI, HELLO),
        ),
        ({"instruction": "Hi", "input": "", "output": "Hello!"}, "alpaca", (HI, HELLO)),
        ({"instruction": "Hi", "output": "Hello!"}, "alpaca", (HI, HELLO)),
        (
            {"instruction": "Say", "input": "it", "output": "Hello!", "system": "Be"},
            "alpaca",
            (Message("system", "Be"), Message("user", "Say\n\nit"), HELLO),
        ),
        ({"prompt": "Hi", "completion": "Hello!"}, "prompt_completion", (HI, HELLO)),
        (["Hi", "Hello!"], "dialogue", (HI, HELLO)),
        (["Hi", "Hello!", "Hi"], "dialogue", (HI, HELLO, HI)),
        *(({key: ["Hi", "Hello!"]}, "dialogue", (HI, HELLO)) for key in ("dialogue", "dialog", "turns", "utterances")),
        ({"conversations": ["Hi", "Hello!"]}, "dialogue", (HI, HELLO)),
        ({"messages": None, "dialog": ["Hi", "Hello!"]}, "dialogue", (HI, HELLO)),
    ],
)
def test_conversations(row: Any, data_format: DatasetFormat, messages: tuple[Message, ...]) -> None:
    assert format_of(row) == data_format
    assert example_of(row, data_format, 3) == Conversation(messages, 3)


def test_an_answer_of_weight_0_is_read_and_not_learned() -> None:
    turns = [USER, {**ASSISTANT, "weight": 0}, USER, {**ASSISTANT, "weight": None}]
    assert example_of({"messages": turns}, "messages", 1) == Conversation((HI, HELLO, HI, HELLO), 1, unlearned=(1,))
    system = Message("system", "Be")
    learned = example_of({"messages": turns, "system": "Be"}, "messages", 1)
    assert learned == Conversation((system, HI, HELLO, HI, HELLO), 1, unlearned=(2,))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Hello!", "rejected": "No."},
        {"prompt": [USER], "chosen": "Hello!", "rejected": "No."},
        {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [turn("assistant", "No.")]},
        {"prompt": "Hi", "chosen": [USER, ASSISTANT], "rejected": [USER, turn("assistant", "No.")]},
        {"chosen": [USER, ASSISTANT], "rejected": [USER, turn("assistant", "No.")], "messages": [USER]},
        {"prompt": [USER], "chosen": [USER, ASSISTANT], "rejected": [USER, turn("assistant", "No.")]},
    ],
)
def test_preferences(row: Any) -> None:
    assert format_of(row) == "preference"
    assert example_of(row, "preference", 3) == Preference((HI,), "Hello!", "No.", 3)


def test_a_preference_keeps_its_system_prompt() -> None:
    row = {"system": "Be", "prompt": "Hi", "chosen": "a", "rejected": "b"}
    assert example_of(row, "preference", 1) == Preference((Message("system", "Be"), HI), "a", "b", 1)


def test_plain_text() -> None:
    assert format_of({"text": "Once"}) == "text"
    assert example_of({"text": " Once\n"}, "text", 2) == PlainText(" Once\n", 2)


@pytest.mark.parametrize(
    ("data_format", "row", "reason"),
    [
        ("messages", {"messages": "Hi"}, "a text and no list"),
        ("messages", {"text": "Hi"}, "no 'messages'"),
        ("messages", 7, "a number"),
        ("messages", None, "missing"),
        ("messages", {"messages": []}, "no turn of the assistant"),
        ("messages", {"messages": [USER]}, "no turn of the assistant"),
        ("messages", {"messages": [ASSISTANT]}, "turn 1 is the assistant's"),
        ("messages", {"messages": [USER, USER, ASSISTANT]}, "turn 2 is the user's"),
        ("messages", {"messages": [USER, turn("system"), ASSISTANT]}, "turn 2 is the system's"),
        ("messages", {"messages": [USER, ASSISTANT, ASSISTANT]}, "turn 3 is the assistant's"),
        ("messages", {"messages": [USER, "Hello!"]}, "turn 2 is a text and no object"),
        ("messages", {"messages": [USER, turn("tool")]}, "no 'role' that is known"),
        ("messages", {"messages": [USER, turn("Assistant")]}, "no 'role' that is known"),
        ("messages", {"messages": [USER, turn("assistant", None)]}, "'content' of turn 2 is missing"),
        ("messages", {"messages": [USER, turn("assistant", ["a"])]}, "is a list and no text"),
        ("messages", {"messages": [USER, turn("assistant", "")]}, "'content' of turn 2 is empty"),
        ("messages", {"messages": [USER, turn("assistant", " \n")]}, "'content' of turn 2 is empty"),
        ("messages", {"messages": [USER, turn("assistant", "a\0b")]}, "NUL"),
        ("messages", {"messages": [USER, turn("assistant", "a\ud83d")]}, "half of a surrogate"),
        ("messages", {"messages": [USER, turn("assistant", "a\udcff")]}, "not UTF-8"),
        ("messages", {"messages": [USER, turn("assistant", tool_calls=[{"id": 1}])]}, "'tool_calls'"),
        ("messages", {"messages": [USER, turn("assistant", weight=0)]}, "have weight 0"),
        ("messages", {"messages": [USER, turn("assistant", weight=0.5)]}, "only 0 and 1"),
        ("messages", {"messages": [{**USER, "weight": 0}, ASSISTANT]}, "only 0 and 1"),
        ("preference", {"chosen": [USER, {**ASSISTANT, "weight": 0}], "rejected": [USER, turn("assistant")]}, "weight"),
        ("messages", {"messages": [USER, ASSISTANT], "system": 3}, "'system' is a number"),
        ("sharegpt", {"conversations": [{"from": "human", "value": "Hi"}, {"from": "bot", "value": "x"}]}, "'from'"),
        ("sharegpt", {"conversations": [{"from": "gpt", "value": "Hi"}]}, "turn 1 is the assistant's"),
        ("alpaca", {"instruction": "Hi", "output": ""}, "'output' is empty"),
        ("alpaca", {"instruction": "Hi", "input": 3, "output": "x"}, "'input' is a number"),
        ("alpaca", ["Hi"], "a list and no alpaca row"),
        ("prompt_completion", {"prompt": [USER], "completion": "x"}, "'prompt' is a list"),
        ("prompt_completion", {"prompt": "Hi"}, "'completion' is missing"),
        ("dialogue", ["Hi"], "no turn of the assistant"),
        ("dialogue", ["Hi", 3], "turn 2 is a number"),
        ("dialogue", {"dialogue": [["Hi", "Hello!"]]}, "turn 1 is a list"),
        ("preference", {"prompt": "Hi", "chosen": "a"}, "'rejected' is missing"),
        ("preference", {"chosen": "a", "rejected": "b"}, "'prompt' is missing"),
        ("preference", {"prompt": "Hi", "chosen": "a", "rejected": "a"}, "the same"),
        ("preference", {"prompt": "Hi", "chosen": [USER], "rejected": [USER]}, "does not end with"),
        (
            "preference",
            {"prompt": "Ho", "chosen": [USER, ASSISTANT], "rejected": [USER, turn("assistant")]},
            "something",
        ),
        ("preference", {"prompt": [ASSISTANT], "chosen": "a", "rejected": "b"}, "turn 1 is the assistant's"),
        (
            "preference",
            {"chosen": [USER, ASSISTANT], "rejected": [turn("user"), turn("assistant")]},
            "the same messages",
        ),
        (
            "preference",
            {"prompt": [turn("user")], "chosen": [USER, ASSISTANT], "rejected": [USER, turn("assistant")]},
            "other messages",
        ),
        ("text", {"text": ""}, "'text' is empty"),
        ("text", {"text": True}, "'text' is true or false"),
        ("text", {"text": b"bytes"}, "'text' is something else"),
    ],
)
def test_an_unusable_row_says_why(data_format: DatasetFormat, row: Any, reason: str) -> None:
    with pytest.raises(UnusableRow) as caught:
        example_of(row, data_format, 1)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "row", [None, 3, "Hi", [], [3], {}, {"messages": []}, {"messages": [{}]}, {"prompt": "Hi"}, {"question": "Hi"}]
)
def test_rows_without_a_format(row: Any) -> None:
    assert format_of(row) is None


def test_what_a_reason_says_never_quotes_the_row() -> None:
    with pytest.raises(UnusableRow) as caught:
        example_of({"messages": [turn("secret", "secret")]}, "messages", 1)
    assert "secret" not in str(caught.value)


def test_columns_of_training_data() -> None:
    assert fits_columns(["id", "prompt", "completion"])
    assert fits_columns(["messages"])
    assert not fits_columns(["prompt"])
    assert not fits_columns([])
