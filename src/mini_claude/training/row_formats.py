"""What a row of training data means: which format it has, and the example that it gives.

    messages           {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    sharegpt           {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}
    alpaca             {"instruction": "...", "input": "...", "output": "..."}
    prompt_completion  {"prompt": "...", "completion": "..."}
    dialogue           ["...", "..."] or {"dialogue": ["...", "..."]}; user and assistant take turns
    preference         {"prompt": "...", "chosen": "...", "rejected": "..."}; each a text or a list of messages
    text               {"text": "..."}, all of it learned

Rows are plain values as JSON, CSV or Parquet give them. Other members are left alone, except those that would change
what is learned: they are honoured ("system"; "weight": 0 on an assistant's message that is to be read and not to be
learned, as in OpenAI's format) or the row is refused (tool calls, other weights).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, get_args

from mini_claude.training.examples import Conversation, DatasetFormat, Example, PlainText, Preference
from mini_claude.types import Message, Role

TURN_KEYS: Final = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns", "utterances")
COLUMNS: Final = frozenset(
    {*TURN_KEYS, "system", "instruction", "input", "output", "prompt", "completion", "chosen", "rejected", "text"}
)
_REQUIRED: Final[Sequence[tuple[DatasetFormat, frozenset[str]]]] = (
    ("preference", frozenset({"chosen", "rejected"})),
    ("alpaca", frozenset({"instruction", "output"})),
    ("prompt_completion", frozenset({"prompt", "completion"})),
    ("text", frozenset({"text"})),
)
_ROLES: Final[Mapping[str, Role]] = {role: role for role in get_args(Role)} | {"developer": "system"}
_SHAREGPT_ROLES: Final[Mapping[str, Role]] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_NOT_SUPPORTED: Final = ("tool_calls", "function_call", "tool_call_id")


class UnusableRow(ValueError):
    """This row gives no example; the message says why, without quoting it."""


def fits_columns(names: Sequence[str]) -> bool:
    """Whether a table with these columns can hold training data."""
    present = set(names)
    return not present.isdisjoint(TURN_KEYS) or any(keys <= present for _, keys in _REQUIRED)


def format_of(row: Any) -> DatasetFormat | None:
    """The format that a row seems to have, by its members' names; None where it has none of them."""
    if isinstance(row, list):
        return _format_of_turns(row)
    if not isinstance(row, dict):
        return None
    for name, keys in _REQUIRED[:1]:
        if keys <= row.keys():
            return name
    for key in TURN_KEYS:
        if key in row and (found := _format_of_turns(row[key])):
            return found
    return next((name for name, keys in _REQUIRED if keys <= row.keys()), None)


def _format_of_turns(turns: Any) -> DatasetFormat | None:
    if not isinstance(turns, list) or not turns:
        return None
    if isinstance(turns[0], str):
        return "dialogue"
    if isinstance(turns[0], dict):
        return "sharegpt" if "from" in turns[0] else "messages" if "role" in turns[0] else None
    return None


def example_of(row: Any, data_format: DatasetFormat, number: int) -> Example:
    """The example of a row that should have this format. Raises `UnusableRow`."""
    if data_format in ("messages", "sharegpt", "dialogue"):
        return _with_weights(row, data_format, number)
    if not isinstance(row, dict):
        raise UnusableRow(f"it is {_kind(row)} and no {data_format} row")
    if data_format == "preference":
        return _preference(row, number)
    if data_format == "text":
        return PlainText(_text(row, "text"), number)
    if data_format == "alpaca":
        prompt, answer = _alpaca_prompt(row), _text(row, "output")
    else:
        prompt, answer = _text(row, "prompt"), _text(row, "completion")
    return Conversation(_conversation([Message("user", prompt), Message("assistant", answer)], row), number)


def _with_weights(row: Any, data_format: DatasetFormat, number: int) -> Conversation:
    turns = _turns(row, data_format)
    messages = _conversation(turns, row)
    in_front = len(messages) - len(turns)  # a system prompt that stood apart
    raw = row if isinstance(row, list) else row[_turn_key(row)]
    unlearned = tuple(place for place, turn in enumerate(raw, in_front) if _weight(turn) == 0)
    if all(place in unlearned for place, message in enumerate(messages) if message.role == "assistant"):
        raise UnusableRow("all turns of the assistant have weight 0, so there is nothing to learn")
    return Conversation(messages, number, unlearned)


def _weight(turn: Any) -> Any:
    weight = turn.get("weight") if isinstance(turn, dict) else None
    return 1 if weight is None else weight


def _alpaca_prompt(row: Mapping[str, Any]) -> str:
    """Instruction and input, a blank line between them: the model's own chat template stands around both."""
    instruction = _text(row, "instruction")
    return f"{instruction}\n\n{_text(row, 'input')}" if row.get("input") else instruction


def _turn_key(row: Mapping[str, Any]) -> str | None:
    return next((key for key in TURN_KEYS if row.get(key) is not None), None)


def _turns(row: Any, data_format: DatasetFormat) -> list[Message]:
    if isinstance(row, dict):
        key = _turn_key(row)
        if key is None:
            raise UnusableRow(f"it has no {TURN_KEYS[0]!r}, as {data_format} rows do")
        row = row[key]
    if not isinstance(row, list):
        raise UnusableRow(f"its turns are {_kind(row)} and no list")
    match data_format:
        case "sharegpt":
            return [_message(turn, place, "from", "value", _SHAREGPT_ROLES) for place, turn in enumerate(row, 1)]
        case "dialogue":
            roles: tuple[Role, Role] = ("user", "assistant")
            return [Message(roles[i % 2], _checked(text, f"turn {i + 1}")) for i, text in enumerate(row)]
        case _:
            return _messages(row)


def _messages(turns: Sequence[Any]) -> list[Message]:
    return [_message(turn, place, "role", "content", _ROLES) for place, turn in enumerate(turns, 1)]


def _message(turn: Any, place: int, role_key: str, text_key: str, roles: Mapping[str, Role]) -> Message:
    if not isinstance(turn, dict):
        raise UnusableRow(f"turn {place} is {_kind(turn)} and no object")
    for key in _NOT_SUPPORTED:
        if turn.get(key):
            raise UnusableRow(f"turn {place} has {key!r}, and tools are not supported")
    said = turn.get(role_key)
    role = roles.get(said) if isinstance(said, str) else None
    if _weight(turn) not in ((0, 1) if role == "assistant" else (1,)):
        raise UnusableRow(f"turn {place} has a weight, of which only 0 and 1 are supported, and 0 on the assistant's")
    if role is None:
        known = ", ".join(dict.fromkeys(roles))
        raise UnusableRow(f"turn {place} has no {role_key!r} that is known ({known})")
    return Message(role, _checked(turn.get(text_key), f"{text_key!r} of turn {place}"))


def _conversation(messages: list[Message], row: Any) -> tuple[Message, ...]:
    """The messages in an order that every chat template takes, with the row's own system prompt in front."""
    system = row.get("system") if isinstance(row, dict) else None
    if system and not (messages and messages[0].role == "system"):
        messages = [Message("system", _checked(system, "'system'")), *messages]
    _check_order(messages)
    if not any(message.role == "assistant" for message in messages):
        raise UnusableRow("it has no turn of the assistant, so there is nothing to learn")
    return tuple(messages)


def _check_order(messages: Sequence[Message]) -> None:
    expected: Role = "user"
    for place, message in enumerate(messages, 1):
        if place == 1 and message.role == "system":
            continue
        if message.role != expected:
            raise UnusableRow(f"turn {place} is the {message.role}'s and should be the {expected}'s")
        expected = "assistant" if expected == "user" else "user"


def _preference(row: Mapping[str, Any], number: int) -> Preference:
    chosen_prompt, chosen = _answer(row, "chosen")
    rejected_prompt, rejected = _answer(row, "rejected")
    if chosen_prompt != rejected_prompt:
        raise UnusableRow("'chosen' and 'rejected' do not answer the same messages")
    if row.get("prompt") is None and chosen_prompt:
        prompt = chosen_prompt
    elif isinstance(row.get("prompt"), list):
        prompt = _messages(row["prompt"])
        if chosen_prompt not in ([], prompt):
            raise UnusableRow("'chosen' begins with other messages than 'prompt'")
    else:
        text = _text(row, "prompt")
        prompt = chosen_prompt or [Message("user", text)]
        if prompt[-1].content != text:
            raise UnusableRow("'chosen' answers something else than 'prompt'")
    if chosen == rejected:
        raise UnusableRow("'chosen' and 'rejected' are the same")
    messages = _conversation([*prompt, Message("assistant", chosen)], row)  # which checks the order, too
    return Preference(messages[:-1], chosen, rejected, number)


def _answer(row: Mapping[str, Any], key: str) -> tuple[list[Message], str]:
    """The messages before the answer, where the row repeats them, and the answer."""
    if not isinstance(row.get(key), list):
        return [], _text(row, key)
    messages = _messages(row[key])
    if not messages or messages[-1].role != "assistant":
        raise UnusableRow(f"{key!r} does not end with a turn of the assistant")
    if _weight(row[key][-1]) == 0:
        raise UnusableRow(f"{key!r} ends with a turn of weight 0")
    return messages[:-1], messages[-1].content


def _text(row: Mapping[str, Any], key: str) -> str:
    return _checked(row.get(key), repr(key))


def _checked(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise UnusableRow(f"{what} is {_kind(value)} and no text")
    if not value.strip():
        raise UnusableRow(f"{what} is empty")
    if "\0" in value:
        raise UnusableRow(f"{what} holds a NUL character")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            code = ord(value[error.start])
            # PEP 383 keeps a byte that is not UTF-8 as one of these 128 surrogates.
            why = "is not UTF-8" if 0xDC80 <= code <= 0xDCFF else "holds half of a surrogate pair"
            raise UnusableRow(f"{what} {why}") from error
    return value


def _kind(value: Any) -> str:
    match value:
        case None:
            return "missing"
        case bool() | int() | float():
            return "a number" if not isinstance(value, bool) else "true or false"
        case str():
            return "a text"
        case list():
            return "a list"
        case dict():
            return "an object"
    return "something else"
