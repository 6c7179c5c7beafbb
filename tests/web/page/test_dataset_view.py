"""A dataset and what a model sees of it, as HTML."""

from mini_claude.data.records import Dataset
from mini_claude.training.dataset_formats import FORMATS as KNOWN
from mini_claude.training.doctor_report import LengthCount, Sample, SampleToken
from mini_claude.training.examples import RowProblem
from mini_claude.web.page.certificate import certificate_html
from mini_claude.web.page.dataset_view import FORMATS, dataset_html, items_of, size_of
from mini_claude.web.page.token_view import lengths_html, sample_html, visible

BROKEN = Dataset(
    *("d", "o", "0" * 64, "<x>.jsonl", "jsonl", "messages", 1234, 40, 3),
    (RowProblem(2, 7, "it says <script>"), RowProblem(3, None, "it is empty")),
    0.0,
)


def test_problems_are_told_by_row_and_line_and_nothing_of_the_file_is_obeyed() -> None:
    html = dataset_html(BROKEN)
    assert "3 of 40 rows cannot be used" in html
    assert "<td>2</td><td>7</td><td>it says &lt;script&gt;</td>" in html
    assert "<td>3</td><td></td>" in html
    assert "and 1 more" in html
    assert "<x>" not in html


def test_every_format_has_a_name_that_people_understand() -> None:
    assert FORMATS.keys() == KNOWN.keys()


def test_the_list_marks_the_current_dataset_and_broken_ones() -> None:
    (item,) = items_of([BROKEN], "d")
    assert item["current"] == "true"
    assert item["note"] == "40 rows · chat messages · 3 broken"


def test_sizes_are_told_in_units_of_thousands() -> None:
    assert [size_of(size) for size in (999, 3700, 2_500_000)] == ["999 bytes", "3.7 kB", "2.5 MB"]


def test_learned_tokens_are_marked_and_all_are_escaped() -> None:
    tokens = (SampleToken(1, "Q<b>", False), SampleToken(2, "", False), SampleToken(3, "A&", True))
    html = sample_html(Sample(4, "chosen", tokens, truncated=9))
    assert "<span>Q&lt;b&gt;</span><mark>A&amp;</mark>" in html
    assert "Row 4 (the better answer), 3 tokens" in html
    assert "9 more tokens are cut off" in html


def test_line_ends_and_control_characters_can_be_seen() -> None:
    assert visible("a\nb\x1b") == "a↵\nb\N{REPLACEMENT CHARACTER}"


def test_the_longest_bar_is_the_one_with_most_examples() -> None:
    html = lengths_html([LengthCount(8, 1), LengthCount(16, 50)])
    assert "width:2%" in html
    assert "width:100%" in html


def test_a_certificate_says_in_words_what_passed_and_what_did_not() -> None:
    step = {"name": "merged", "state": "passed", "reason": None, "top1_agreement": 0.99}
    failed = {"name": "gguf_merged", "state": "failed", "reason": "It says <something> else.", "top1_agreement": None}
    html = certificate_html({"passed": False, "reason": "One.", "num_positions": 72, "steps": [step, failed]})
    assert html.count("FAILED") == 2
    assert "the likeliest next word is the same in 99% of the places" in html
    assert "&lt;something&gt;" in html
    assert certificate_html(None) == ""
