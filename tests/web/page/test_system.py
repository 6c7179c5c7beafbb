"""The history of the machine, its rates, its plots and its totals."""

import json
from dataclasses import replace

import gradio as gr
import pytest

from mini_claude.errors import Unavailable
from mini_claude.services.health import Health
from mini_claude.services.recent_errors import LoggedError
from mini_claude.web.page.system import SystemTab
from mini_claude.web.page.system_history import Sample, SystemHistory, token_rates
from mini_claude.web.page.system_report import errors_html, figures_of, health_html, plots_html, totals_of
from mini_claude.web.page.time_plot import time_plot

from ..conftest import Site

SAMPLE = Sample(100.0, 50.0, 2_000_000_000, 8_000_000_000, {"page": 1_000_000}, {}, 1, 2, {"m": 10}, 5, 6, 100)


def samples(*generated: int) -> list[Sample]:
    return [replace(SAMPLE, at=100.0 + 2 * index, generated={"m": total}) for index, total in enumerate(generated)]


def test_tokens_per_second_are_a_mean_over_six_seconds() -> None:
    assert token_rates(samples(0, 20, 40, 60, 80)) == [(102, 10.0), (104, 10.0), (106, 10.0), (108, 10.0)]
    assert token_rates(samples(0, 0, 0, 60))[-1] == (106, 10.0)


def test_an_engine_that_was_started_anew_counts_from_zero() -> None:
    assert token_rates(samples(1000, 20)) == [(102, 10.0)]
    assert token_rates([SAMPLE]) == []


async def test_the_history_is_begun_once_and_has_gaps_where_no_supervisor_answers(site: Site) -> None:
    history = SystemHistory(site.runtime)
    await history.start()
    task = history._task
    await history.start()
    assert history._task is task is not None
    assert len(history.samples) == 1
    assert history.samples[0].memory_total > history.samples[0].memory_used > 0
    site.runtime.broken = Unavailable("The supervisor does not answer.")
    await history.look()
    assert len(history.samples) == 1
    task.cancel()


def test_a_plot_shows_each_lines_latest_value_and_escapes_names() -> None:
    plot = time_plot("Load", "%", {"<b>": [(90.0, 0.0), (100.0, 50.0)]}, now=100.0, seconds=100.0, top=100)
    assert "&lt;b&gt; <b>50 %</b>" in plot
    assert 'points="372.4,126.0 408.0,68.0"' in plot  # a tenth of the width before the end; half of the height


def test_older_points_than_the_plot_holds_do_not_leave_it() -> None:
    plot = time_plot("Load", "%", {"busy": [(0.0, 1.0), (500.0, 1.0)]}, now=500.0, seconds=300.0)
    assert 'points="52.0,10.0 408.0,10.0"' in plot


def test_every_process_and_gpu_has_its_line() -> None:
    one = replace(SAMPLE, gpus={"GPU 0 H100": (1_000_000_000, 80_000_000_000)})
    html = plots_html([one, replace(one, at=102.0, processes={"engine:m": 3_000_000})], 102.0)
    assert all(text in html for text in ("engine:m <b>3 MB", "page <b>0 MB", "Memory of GPU 0 H100", "used <b>1 GB"))
    assert "No figures yet" in plots_html([], 1.0)


def test_totals_are_summed_over_models_routes_and_codes() -> None:
    text = (
        "# TYPE mini_claude_replies counter\n"
        'mini_claude_replies_total{model="a",finish_reason="stop"} 2.0\n'
        'mini_claude_replies_total{model="b",finish_reason="stop"} 3.0\n'
        "# TYPE mini_claude_http_requests counter\n"
        'mini_claude_http_requests_total{method="GET",route="/",status="200"} 5.0\n'
        'mini_claude_http_requests_total{method="GET",route="/",status="503"} 1.0\n'
        'mini_claude_http_requests_total{method="GET",route="/api/v1/health",status="503"} 3.0\n'
        "# TYPE mini_claude_time_to_first_token_seconds histogram\n"
        'mini_claude_time_to_first_token_seconds_bucket{model="a",le="+Inf"} 4.0\n'
        'mini_claude_time_to_first_token_seconds_count{model="a"} 4.0\n'
        'mini_claude_time_to_first_token_seconds_sum{model="a"} 2.0\n'
    )
    totals = totals_of(text)
    assert (totals["answers"], totals["requests"], totals["faults"], totals["first_seconds"]) == (5, 9, 1, 0.5)
    assert totals_of("")["first_seconds"] == 0


@pytest.mark.parametrize(("state", "word"), [("ready", "Ready to answer"), ("failed", "Not ready")])
def test_health_says_first_whether_a_question_would_be_answered(state: str, word: str) -> None:
    health = Health("ok", "ok", "<m>", state)  # type: ignore[arg-type]
    html = health_html(health, "0.1.0", figures_of(2_000_000_000, totals_of("")))
    assert "free disk: 2.0 GB" in html
    assert "free disk" not in health_html(health, "0.1.0")
    assert word in html
    assert "default model &lt;m&gt;" in html


def test_errors_are_escaped_and_none_is_said() -> None:
    error = LoggedError("2026-01-02T03:04:05Z", "error", "api-0", "<x>", {"code": "disk_full"})
    html = errors_html([error])
    assert "2026-01-02 03:04:05" in html
    assert "&lt;x&gt;" in html
    assert "code disk_full" in html
    assert "None in the log files" in errors_html([])


async def test_the_tab_tells_what_is_wrong_while_there_is_no_supervisor(site: Site, visit: gr.Request) -> None:
    with gr.Blocks():
        tab = SystemTab(site.services)
    site.runtime.broken = Unavailable("The supervisor does not answer.")
    health, plots, errors = await tab._look(visit)
    assert "The supervisor does not answer." in health
    assert "No figures yet" in plots
    assert "None in the log files" in errors


async def test_a_user_is_told_of_health_and_of_no_figures_or_errors(
    site: Site, visit: gr.Request, foreign_visit: gr.Request
) -> None:
    logs = site.services.settings.logs_dir
    logs.mkdir(parents=True)
    line = {"level": "error", "logger": "mini_claude.x", "event": "engine.crashed", "timestamp": "2026-01-02T03:04:05Z"}
    (logs / "api-0.log").write_text(json.dumps(line))
    with gr.Blocks():
        tab = SystemTab(site.services)
    await tab._history.look()
    assert ["requests" in part or "engine.crashed" in part for part in await tab._look(visit)] == [True, False, True]
    health, plots, errors = await tab._look(foreign_visit)
    assert "Ready to answer" in health
    assert "requests" not in health
    assert "admins' keys" in plots
    assert errors == ""


async def test_its_timer_runs_only_while_it_is_the_open_tab(site: Site, visit: gr.Request) -> None:
    with gr.Blocks():
        tab = SystemTab(site.services)
    for label, active in (("System", True), ("Chat", False)):
        timer = await tab._opened(visit, gr.SelectData(None, {"index": 0, "value": label}))
        assert timer.active is active
