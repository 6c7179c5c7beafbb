"""Files of every kind, whole and broken, read as training examples."""

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mini_claude.errors import InvalidRequest
from mini_claude.training import dataset_formats, dataset_lines
from mini_claude.training.dataset_files import SUFFIXES
from mini_claude.training.dataset_formats import FORMATS, detect, read_examples
from mini_claude.training.examples import Conversation, Example, PlainText, RowProblem
from mini_claude.types import Message

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, é!"}]}
ALPACA = {"instruction": "Say; it", "input": "", "output": 'Hello,\n"é"!'}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_one(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_one


def conversation(row: int, *texts: str) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(tuple(Message(roles[i % 2], text) for i, text in enumerate(texts)), row)  # type: ignore[arg-type]


def read(path: Path) -> list[Example | RowProblem]:
    return list(read_examples(path))


def table(rows: list[dict[str, Any]], delimiter: str = ",", end: str = "\n") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


ALPACA_EXAMPLES = [conversation(row, "Say; it", 'Hello,\n"é"!') for row in (1, 2)]
DIALOGUES = [["Hi", "Hello"], ["A", "B", "C", "D"]]


@pytest.mark.parametrize(
    ("name", "content", "detected", "examples"),
    [
        ("a.jsonl", lines(GOOD, GOOD), ("jsonl", "messages"), [conversation(n, "Hi", "Hello, é!") for n in (1, 2)]),
        ("a.json", lines(GOOD, GOOD), ("jsonl", "messages"), [conversation(n, "Hi", "Hello, é!") for n in (1, 2)]),
        ("a.json", lines(GOOD), ("jsonl", "messages"), [conversation(1, "Hi", "Hello, é!")]),
        ("a", json.dumps(GOOD, indent=2), ("json", "messages"), [conversation(1, "Hi", "Hello, é!")]),
        ("a.txt", json.dumps([ALPACA, ALPACA]), ("json", "alpaca"), ALPACA_EXAMPLES),
        ("a.jsonl", json.dumps([ALPACA, ALPACA], indent=4), ("json", "alpaca"), ALPACA_EXAMPLES),
        ("a.json", "[\n" + ",\n".join([json.dumps(ALPACA)] * 2) + "\n]", ("json", "alpaca"), ALPACA_EXAMPLES),
        ("a.csv", table([ALPACA, ALPACA]), ("csv", "alpaca"), ALPACA_EXAMPLES),
        ("a.csv", "\ufeff" + table([ALPACA, ALPACA], ";", "\r\n"), ("csv", "alpaca"), ALPACA_EXAMPLES),
        ("a", table([ALPACA, ALPACA], "\t"), ("csv", "alpaca"), ALPACA_EXAMPLES),
        ("a.csv", table([{"messages": json.dumps(GOOD["messages"])}]), ("csv", "messages"),
         [conversation(1, "Hi", "Hello, é!")]),
        ("a.csv", "text\nOnce\n", ("csv", "text"), [PlainText("Once", 1)]),
        ("a.jsonl", lines(*DIALOGUES), ("jsonl", "dialogue"),
         [conversation(n, *texts) for n, texts in enumerate(DIALOGUES, 1)]),
        ("a.json", lines(DIALOGUES[0]), ("jsonl", "dialogue"), [conversation(1, "Hi", "Hello")]),
        ("a.json", json.dumps(DIALOGUES), ("json", "dialogue"),
         [conversation(n, *texts) for n, texts in enumerate(DIALOGUES, 1)]),
        ("a.json", json.dumps({"categories": ["x"], "conversations": DIALOGUES}), ("json", "dialogue"),
         [conversation(n, *texts) for n, texts in enumerate(DIALOGUES, 1)]),
        ("a.json", json.dumps({"conversations": DIALOGUES, "x": {}}, indent=1), ("json", "dialogue"),
         [conversation(n, *texts) for n, texts in enumerate(DIALOGUES, 1)]),
        ("a.txt", "One.\r\nTwo.\r\n\r\n", ("text", "text"), [PlainText("One.", 1), PlainText("Two.", 2)]),
        ("a.md", "\n\nOne\ntwo.\n \n\nThree.", ("text", "text"), [PlainText("One\ntwo.", 1), PlainText("Three.", 2)]),
        ("a", "\ufeffÉ.", ("text", "text"), [PlainText("É.", 1)]),
        ("a.txt", "text\nOnce\n", ("text", "text"), [PlainText("text", 1), PlainText("Once", 2)]),
    ],
)  # fmt: skip
def test_every_container_gives_its_examples(
    write: Write, name: str, content: str, detected: tuple[str, str], examples: list[Example]
) -> None:
    path = write(name, content)
    assert detect(path) == detected
    assert read(path) == examples
    kept = path.rename(path.with_name("data" + SUFFIXES[detect(path)[0]]))  # as datasets are kept
    assert detect(kept) == detected


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([{**GOOD, "id": i} for i in range(200)]), path)
    assert detect(path) == ("parquet", "messages")
    assert read(path) == [conversation(n, "Hi", "Hello, é!") for n in range(1, 201)]
    assert detect(path.rename(tmp_path / "odd.name")) == ("parquet", "messages")


def test_broken_parquet_rows_and_files(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = pa.array([b"One", b"\xff", None, b"x" * (dataset_lines.MAX_ROW_BYTES + 1), b"Two"]).cast(
        pa.string(), safe=False
    )
    pq.write_table(pa.table({"text": texts}), path)
    assert read(path) == [
        PlainText("One", 1),
        RowProblem(2, None, "it is not UTF-8"),
        RowProblem(3, None, "'text' is missing and no text"),
        RowProblem(4, None, dataset_lines.TOO_LARGE),
        PlainText("Two", 5),
    ]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InvalidRequest, match="damaged"):
        detect(path)


def test_each_broken_line_is_named_and_the_others_are_read(write: Write) -> None:
    half = '{"messages": [{"role": "user", "content": "\\ud83d"}, {"role": "assistant", "content": "x"}]}'
    content = [
        json.dumps(GOOD),
        "",
        '{"messages": [',
        json.dumps({"messages": [{"role": "user", "content": "Hi"}]}),
        "   ",
        half,
        half.replace("ud83d", "u0000"),
        "[" * 500 + "]" * 500,
        '"' + "x" * dataset_lines.MAX_ROW_BYTES + '"',
        "7",
        json.dumps(GOOD),
    ]
    path = write("a.jsonl", "\n".join(content).encode() + b'\n{"\xff": 1}\n' + json.dumps(GOOD).encode())
    found = read(path)
    problems = [each for each in found if isinstance(each, RowProblem)]
    assert [(each.row, each.line) for each in problems] == [
        (2, 3), (3, 4), (4, 6), (5, 7), (6, 8), (7, 9), (8, 10), (10, 12)
    ]  # fmt: skip
    reasons = ("not valid JSON", "no turn of", "half of a", "NUL", "nested", "larger", "a number", "not UTF-8 (byte 3")
    assert all(reason in each.reason for reason, each in zip(reasons, problems, strict=True)), problems
    assert [each.row for each in found if isinstance(each, Conversation)] == [1, 9, 11]


def test_a_broken_first_line_does_not_hide_the_format(write: Write) -> None:
    assert detect(write("a.jsonl", '{"messages": [\n' + lines(GOOD))) == ("jsonl", "messages")
    assert detect(write("a.json", '{"messages": [\n' + lines(GOOD))) == ("jsonl", "messages")
    assert detect(write("a.jsonl", "{oops\n{oops\n" + lines(GOOD))) == ("jsonl", "messages")
    assert detect(write("a.json", '[{"oops": },\n' + json.dumps(GOOD) + "]")) == ("json", "messages")


def test_broken_rows_of_a_json_list_have_their_lines(write: Write) -> None:
    found = read(write("a.json", f'[{json.dumps(GOOD)},\n{{"messages": 1}},\n{{oops}},\n{json.dumps(GOOD)}] x'))
    assert [type(each) for each in found] == [Conversation, RowProblem, RowProblem, Conversation, RowProblem]
    assert [(each.row, each.line) for each in found if isinstance(each, RowProblem)] == [(2, 2), (3, 3), (5, 4)]


def test_broken_dialogues_of_an_object(write: Write) -> None:
    found = read(write("a.json", '{"conversations": [["A", "B"],\n["A", 1],\nnull,\n["C", "D"]],\n"x" 1}'))
    assert [each.line for each in found if isinstance(each, RowProblem)] == [2, 3, 5]
    assert len(found) == 5


@pytest.mark.parametrize(
    "content", ['{"conversations": [["A", "B"]]', '{"conversations": [["A", "B"]], ', '{"a": 1,\n"b"']
)
def test_an_object_that_was_cut_off_is_noticed(write: Write, content: str) -> None:
    path = write("a.json", content)
    try:
        *_, last = read(path)
    except InvalidRequest:
        assert "conversations" not in content
    else:
        assert isinstance(last, RowProblem)


def test_broken_csv_rows_have_their_lines(write: Write) -> None:
    path = write(
        "a.csv",
        b'prompt,completion\n"two\nlines",x\nonly one\n"a"b,c\n\n,x\na\xff,b\na,b\n"'
        + b"x" * dataset_lines.MAX_ROW_BYTES
        + b'y",b\na,b\nnever,"closed\n',
    )
    found = read(path)
    assert [(each.row, each.line) for each in found if isinstance(each, RowProblem)] == [
        (2, 4), (3, 5), (4, 7), (5, 8), (7, 10), (9, 12)
    ]  # fmt: skip
    assert [each.row for each in found if isinstance(each, Conversation)] == [1, 6, 8]
    assert found[0] == conversation(1, "two\nlines", "x")


def test_broken_texts_have_their_lines(write: Write) -> None:
    path = write("a.txt", b"One.\n\n\xff\nx\n\n" + b"x" * 2_000_000 + b"\n\n" + b"y\n" * 600_000 + b"\nTwo.\n\na\0b")
    found = read(path)
    assert [each.line for each in found if isinstance(each, RowProblem)] == [3, 6, 8, 600_011]
    assert [each for each in found if isinstance(each, PlainText)] == [PlainText("One.", 1), PlainText("Two.", 5)]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", "", "empty"),
        ("a.txt", " \n\n", "empty"),
        ("a.jsonl", "Hello", "does not begin with"),
        ("a.json", '"Hello"', "does not begin with"),
        ("a.jsonl", lines({"question": "x", "answer": "y"}), "row 1 has 'question', 'answer'"),
        ("a.jsonl", lines(7, 8), "does not begin"),
        ("a.jsonl", "{}\n{}\n", "row 1 has nothing"),
        ("a.json", "[1, 2]", "row 1 is no object"),
        ("a.json", "[]", "there are no rows"),
        ("a.json", "[{oops", "row 1: it is not valid JSON"),
        ("a.csv", "question,answer\nx,y\n", "row 1"),
        ("a.csv", "text,text\nx,y\n", "same name"),
        ("a.csv", 'text"a",x"\n"', "row"),
        ("a.csv", "prompt,completion\n", "no rows"),
        ("a.pdf", "Hello", "does not end in .txt"),
        ("a.parquet", "Hello", "damaged"),
        ("a.parquet", b"PAR1" + bytes(100), "damaged"),
        ("a.txt", "Hello".encode("utf-16"), "UTF-16"),
        ("a.txt", bytes(range(256)) * 10, "something else than text"),
    ],
)
def test_what_is_no_dataset_is_refused_with_the_reason(
    write: Write, name: str, content: str | bytes, reason: str
) -> None:
    path = write(name, content)
    for use in (detect, read):
        with pytest.raises(InvalidRequest) as caught:
            use(path)
        assert reason in caught.value.message
        assert caught.value.code == "unknown_dataset_format"


def test_the_refusal_lists_all_formats(write: Write) -> None:
    with pytest.raises(InvalidRequest) as caught:
        detect(write("a.jsonl", lines({"x": 1})))
    assert all(name in caught.value.message for name in FORMATS)


def test_the_format_is_that_of_most_rows_and_the_others_are_broken(write: Write) -> None:
    path = write("a.jsonl", lines({"text": "x"}, GOOD, GOOD))
    assert detect(path) == ("jsonl", "messages")
    first, *_ = read(path)
    assert first == RowProblem(1, 1, "it has no 'messages', as messages rows do")


def test_more_rows_than_the_limit_are_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_formats, "MAX_ROWS", 3)
    assert len(read(write("a.txt", "a\nb\nc\n"))) == 3
    with pytest.raises(InvalidRequest, match="more than 3 rows"):
        read(write("a.txt", "a\nb\nc\nd\n"))


def test_reading_goes_along_with_the_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("a.jsonl", lines(*[GOOD] * 5000))
    taken = 0
    original = dataset_lines.value_of_line

    def counted(line: bytes | None) -> Any:
        nonlocal taken
        taken += 1
        return original(line)

    monkeypatch.setattr(dataset_lines, "value_of_line", counted)
    examples = read_examples(path)
    next(examples)
    assert taken < 200


def test_importing_it_leaves_torch_and_pyarrow_alone() -> None:
    code = (
        "import sys, mini_claude.training.dataset_formats as m; "
        "sys.exit(bool({'torch', 'transformers', 'pyarrow', 'numpy'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
