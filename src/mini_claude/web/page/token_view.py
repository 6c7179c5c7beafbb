"""What the doctor found of a dataset, as HTML: the tokens with the learned ones marked, the figures, the lengths."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from mini_claude.training.doctor_report import DoctorReport, LengthCount, Sample, SampleToken
from mini_claude.web.page.counted import counted

_LEGEND: Final = (
    '<p class="facts"><mark>Marked</mark> is what the model learns to say; the rest it only reads. '
    "Each piece between the thin lines is one token.</p>"
)
_PARTS: Final = {"example": "", "chosen": " (the better answer)", "rejected": " (the worse answer)"}


def report_html(report: DoctorReport) -> str:
    """Everything of a report but the estimate."""
    parts = [f"<ul>{''.join(f'<li>{line}</li>' for line in _figures(report))}</ul>"]
    if report.samples:
        parts.append(_LEGEND + "".join(map(sample_html, report.samples)))
    parts.append(lengths_html(report.lengths))
    return "".join(parts)


def sample_html(sample: Sample) -> str:
    """A row as the model gets it."""
    tokens = "".join(_token(token) for token in sample.tokens if token.text)
    cut = f"<p class='wrong'>{sample.truncated} more tokens are cut off</p>" if sample.truncated else ""
    return (
        f"<section class='tokens'><h4>Row {sample.row}{_PARTS[sample.part]}, {len(sample.tokens)} tokens</h4>"
        f"<p>{tokens}</p>{cut}</section>"
    )


def _token(token: SampleToken) -> str:
    tag = "mark" if token.supervised else "span"
    return f"<{tag}>{escape(visible(token.text))}</{tag}>"


def visible(text: str) -> str:
    """Line ends get a sign, and what cannot be seen becomes a replacement character."""
    shown = text.replace("\n", "↵\n")
    return "".join(c if c.isprintable() or c in "\n\t\u00a0" else "\N{REPLACEMENT CHARACTER}" for c in shown)


def lengths_html(lengths: Sequence[LengthCount]) -> str:
    """A histogram."""
    most = max(bar.num_examples for bar in lengths)
    rows = "".join(
        f"<tr><th scope='row'>up to {bar.up_to:,}</th><td>{bar.num_examples:,}</td>"
        f"<td><i style='width:{max(1, round(100 * bar.num_examples / most))}%'></i></td></tr>"
        for bar in lengths
    )
    return (
        "<table class='histogram'><caption>How long the examples are</caption><thead><tr><th scope='col'>tokens</th>"
        f"<th scope='col'>examples</th><th></th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _figures(report: DoctorReport) -> Iterable[str]:
    yield (
        f"<b>{report.num_examples:,}</b> examples with <b>{report.num_tokens:,}</b> tokens (a token is about ¾ of a "
        f"word), of which <b>{report.num_supervised_tokens:,}</b> ({report.supervised_share:.0%}) are learned"
    )
    if not report.complete:
        yield f"time was up after {report.num_rows:,} rows: the figures hold for these"
    if report.num_broken:
        yield f"{counted(report.num_broken, 'row')} cannot be used"
    if report.num_truncated:
        yield (
            f"{report.num_truncated:,} examples are longer than {report.max_length:,} tokens and lose "
            f"{report.num_truncated_tokens:,} in all; the longest has {report.longest:,}"
        )
    if report.num_duplicates:
        pairs = ", ".join(f"{each.row} = {each.of_row}" for each in report.duplicates[:5])
        yield f"rows that repeat an earlier one: {report.num_duplicates:,} (row {pairs})"
