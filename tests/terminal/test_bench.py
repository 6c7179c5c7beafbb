import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from mini_claude.cli import app
from mini_claude.errors import InvalidRequest, MiniClaudeError, StorageError
from mini_claude.terminal.bench_report import write_report
from mini_claude.terminal.measurement import Measurement, Reply, measurement, percentile

from .conftest import RunningSite, SetEnvironment


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, share) for share in (0.0, 0.5, 0.95, 0.99, 1.0)] == [1.0, 50.0, 95.0, 99.0, 100.0]
    assert percentile([7.0], 0.5) == 7.0


def test_what_clients_saw_becomes_figures() -> None:
    replies = [Reply(10.0, (10.1, 10.2, 10.4), 4), Reply(10.0, (10.3, 10.5), 6)]
    result = measurement(replies, 123.0)
    assert (result.concurrency, result.memory_mb) == (2, 123.0)
    assert result.tokens_per_second == pytest.approx(10 / 0.5)
    assert (result.first_p50, result.first_p95) == pytest.approx((100.0, 300.0))
    assert (result.between_p50, result.between_p99) == pytest.approx((200.0, 200.0))


def test_a_reply_without_text_is_no_measurement() -> None:
    with pytest.raises(InvalidRequest, match="no text"):
        measurement([Reply(1.0, (), 0)], 1.0)


def test_the_report_is_one_file_with_every_figure(tmp_path: Path) -> None:
    results = [Measurement(1, 120.5, 47, 52, 8, 9, 11, 410), Measurement(16, 340.2, 300, 390, 45, 50, 55, 505)]
    write_report(tmp_path / "r.html", "a <model>", results)
    page = (tmp_path / "r.html").read_text()
    assert "a &lt;model&gt;" in page
    assert not re.search(r"(src|href)=|<script|url[(]", page)
    drawings = re.findall(r"<svg.*?</svg>", page)
    assert len(drawings) == 4
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    assert {"340.2", "505"} <= set(re.findall(r"<td>(.*?)</td>", page))
    with pytest.raises(StorageError, match="cannot be written"):
        write_report(tmp_path, "x", results)


def test_the_command_measures_a_running_server(
    site: RunningSite, set_environment: SetEnvironment, tmp_path: Path
) -> None:
    set_environment(data_dir=site.settings.data_dir, port=site.settings.port, engine="echo")
    plot = tmp_path / "report.html"
    done = CliRunner().invoke(app, ["bench", "--concurrency", "1,3", "--tokens", "20", "--plot", str(plot)])
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.output.splitlines() if re.match(r" *[13] ", line)]
    assert [row[0] for row in rows] == ["1", "3"]
    assert all(float(row[1]) > 0 for row in rows)
    assert "wrote" in done.output
    assert "<svg" in plot.read_text()
    assert {len(request.messages) for request in site.runtime.requests} == {1}  # type: ignore[union-attr]
    assert len(site.runtime.requests) == 2 * (1 + 3)


@pytest.mark.parametrize("arguments", [["--concurrency", "0"], ["--concurrency", "1,x"], ["--plot", "report.pdf"]])
def test_what_makes_no_sense_is_refused_before_anything_is_asked(
    arguments: list[str], site: RunningSite, set_environment: SetEnvironment
) -> None:
    set_environment(data_dir=site.settings.data_dir, port=site.settings.port, engine="echo")
    done = CliRunner().invoke(app, ["bench", *arguments])
    assert isinstance(done.exception, InvalidRequest)
    assert site.runtime.requests == []


def test_an_error_of_the_server_is_its_own_sentence(site: RunningSite, set_environment: SetEnvironment) -> None:
    set_environment(data_dir=site.settings.data_dir, port=site.settings.port, engine="echo")
    done = CliRunner().invoke(app, ["bench", "--model", "nobody"])
    assert isinstance(done.exception, MiniClaudeError)
    assert "nobody" in done.exception.message
