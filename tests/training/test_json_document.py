"""Lists of any length, read through a window; what is broken costs itself and no more."""

import io
import json
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, strategies

from mini_claude.training import json_document
from mini_claude.training.json_document import MAX_DEPTH, MAX_VALUE_CHARACTERS, Broken, JSONDocument, parse

VALUES = strategies.recursive(
    strategies.text('[]{}",\\\n ab\u00e9', max_size=8) | strategies.integers() | strategies.none(),
    lambda inner: (
        strategies.lists(inner, max_size=3) | strategies.dictionaries(strategies.text('{",a', max_size=3), inner)
    ),
    max_leaves=8,
)


def read(text: str | bytes) -> list[tuple[int, Any]]:
    document = JSONDocument(io.BytesIO(text.encode() if isinstance(text, str) else text))
    found = list(document.elements())
    assert document.peek() == ""
    return found


@given(strategies.lists(VALUES, max_size=6), strategies.sampled_from([None, 1, 4]))
def test_it_reads_what_json_reads(values: list[Any], indent: int | None) -> None:
    assert [value for _, value in read(json.dumps(values, indent=indent, ensure_ascii=False))] == values


@given(strategies.lists(VALUES, min_size=1, max_size=6), strategies.integers(1, 40))
def test_a_narrow_window_changes_nothing(values: list[Any], width: int) -> None:
    text = json.dumps(values, indent=1)
    longest = max(len(json.dumps(value, indent=1)) for value in values) + 20
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_document, "MAX_VALUE_CHARACTERS", 2 * longest)
        patch.setattr(json_document, "_CHUNK_BYTES", width)
        assert [value for _, value in read(text)] == values


def test_each_value_has_the_line_on_which_it_begins() -> None:
    assert read('[\n{"a":\n1},\n\n"x", 2,\r\n[]\n]') == [(2, {"a": 1}), (5, "x"), (5, 2), (6, [])]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("{'a': 1}", "double quotes in line 2"),
        ('{"a": 1,}', "in line 2"),
        ('{"a": [1, 2}', "',' delimiter"),
        ('{"a": "\n"}', "control character"),
        ('{"a": "\\q"}', "escape"),
        ("nope", "Expecting value"),
        ("}", "where a row should begin"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested deeper"),
        ("[" * 100_000 + "]" * 100_000, "nested deeper"),
        ('"' + "x" * MAX_VALUE_CHARACTERS + '"', "larger than"),
        ('{"a": "' + "x" * 3 * MAX_VALUE_CHARACTERS + '"}', "larger than"),
        ("1" * 5000, "not valid JSON"),
    ],
)
def test_a_broken_value_costs_itself_only(broken: str, reason: str) -> None:
    found = read(f'[\n{broken},\n{{"b": [2]}},\n"last"]')
    assert isinstance(found[0][1], Broken)
    assert found[0][0] == 2
    assert reason in found[0][1].reason
    assert [value for _, value in found[-2:]] == [{"b": [2]}, "last"]
    lines = 2 + broken.count("\n")
    assert [line for line, _ in found[-2:]] == [lines + 1, lines + 2]


def test_what_was_skipped_is_said() -> None:
    found = read('[{"a":\n[}\n,{"b": 1}\n, {"c": {\n]')
    assert [line for line, _ in found] == [1, 3, 4]
    assert "lines 1 to 2 were skipped" in found[0][1].reason
    assert found[1][1] == {"b": 1}
    assert "lines 4 to 5 were skipped" in found[2][1].reason


def test_a_missing_comma_is_no_reason_to_stop() -> None:
    found = read('[{"a": 1}\n{"b": 2},\n{"c": 3}]')
    assert found[0] == (1, {"a": 1})
    assert isinstance(found[1][1], Broken)
    assert "comma" in found[1][1].reason
    assert found[2] == (3, {"c": 3})


@pytest.mark.parametrize("text", ["[", '[{"a": 1},', '[{"a": 1}, {"b": ', '[{"a": 1}', '[{"a": "', "[tru"])
def test_a_file_that_was_cut_off_is_noticed(text: str) -> None:
    *_, (_, last) = read(text)
    assert isinstance(last, Broken)


def test_bytes_that_are_not_utf8_reach_the_reader_as_surrogates() -> None:
    assert read(b'["\xff", "\xc3\xa9"]') == [(1, "\udcff"), (1, "é")]
    assert read(b'\xef\xbb\xbf["a"]') == [(1, "a")]


def test_a_large_list_takes_little_memory_and_time() -> None:
    row = json.dumps({"messages": [{"role": "user", "content": "x" * 1000}]})
    file = io.BytesIO(f"[{','.join([row] * 20_000)}]".encode())
    started = time.process_time()
    tracemalloc.start()
    assert sum(1 for _ in JSONDocument(file).elements()) == 20_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40_000_000
    assert time.process_time() - started < 10


@pytest.mark.parametrize("flood", [b"[", b"{", b'"', b",", b"[1 ", b'{"a":', b"\\", b" "])
def test_a_flood_of_one_mark_ends_soon(flood: bytes) -> None:
    started = time.process_time()
    document = JSONDocument(io.BytesIO(b"[" + flood * (1_200_000 // len(flood))))
    assert sum(1 for _ in document.elements()) > 0
    assert time.process_time() - started < 10


def test_parse_says_why() -> None:
    assert parse('{"a": [1]}') == {"a": [1]}
    for text, reason in (
        ("{", "character 2"),
        ("[" * 9999, "nested"),
        ("1" * 5000, "too long"),
        ("1 2", "character 3"),
    ):
        with pytest.raises(ValueError, match=reason):
            parse(text)
