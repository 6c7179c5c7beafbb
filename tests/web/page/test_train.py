"""The Train tab's events over real services; jobs wait, since no supervisor starts them, or are moved by hand."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from pydantic import SecretStr

from mini_claude.data.adapters import AdapterRepository
from mini_claude.data.jobs import JobRepository
from mini_claude.services.identity import LOCAL
from mini_claude.training import demo
from mini_claude.web.page.data import DataTab
from mini_claude.web.page.labels import GROUPS
from mini_claude.web.page.train import TrainTab
from mini_claude.web.page.training_form import preset_values

from ..conftest import OpenSite, Site

NAMES = ["drop_broken_rows", *(name for labels in GROUPS.values() for name in labels)]
PROGRESS = {
    "step": 3,
    "num_steps": 12,
    "epoch": 0.5,
    "loss": 2.25,
    "learning_rate": 1e-4,
    "tokens_per_second": 150.0,
    "seconds_left": 30.0,
}


@pytest.fixture
async def file_site(open_site: OpenSite, tmp_path: Path) -> Site:
    """Jobs need a database that other processes could see."""
    return await open_site(database_url=SecretStr(f"sqlite:///{tmp_path / 'jobs.db'}"))


@pytest.fixture
async def tab(file_site: Site) -> AsyncIterator[TrainTab]:
    with gr.Blocks():
        yield TrainTab(file_site.services, gr.BrowserState({"job": None}))


def values(**changes: Any) -> list[Any]:
    by_name = preset_values("Balanced") | changes
    return [by_name[name] for name in NAMES]


def run_job(site: Site, job_id: str) -> str:
    """The token of a trainer that has begun it and taken three steps."""
    jobs = JobRepository(site.services.database)
    job = jobs.claim(1)
    assert job is not None
    assert job.id == job_id
    assert job.token is not None
    jobs.begin(job.id, job.token, 1, 0.0)
    jobs.append(job.id, job.token, "evaluation", {"step": 0, "eval_loss": 3.0})
    jobs.append(job.id, job.token, "progress", PROGRESS)
    return job.token


def finish(site: Site, job_id: str) -> None:
    """Let a trainer come to a result."""
    token = run_job(site, job_id)
    version = AdapterRepository(site.services.database).add(
        LOCAL.owner, "smollm2-135m", "mini-claude", job_id, {}, job_id
    )
    JobRepository(site.services.database).finish(job_id, token, "completed", adapter=version.reference)


async def test_one_click_trains_the_demo(tab: TrainTab, visit: gr.Request, file_site: Site) -> None:
    update = await tab._demo(visit, None, None)
    (job,) = await file_site.services.training.list(LOCAL, 10)
    assert (job.spec.dataset_name, job.spec.adapter_name) == (demo.DATASET, demo.ADAPTER)
    assert job.spec.arguments.num_train_epochs == demo.ARGUMENTS["num_train_epochs"]
    assert update[tab.here] == {"job": job.id}
    assert "waiting" in update[tab.panel.head]
    assert update[tab.panel.timer].active is True


async def test_two_people_can_train_the_demo(
    tab: TrainTab, visit: gr.Request, foreign_visit: gr.Request, file_site: Site
) -> None:
    await tab._demo(visit, None, None)
    update = await tab._demo(foreign_visit, None, None)
    assert len(update[tab.panel.list]) == 1
    assert len(await file_site.services.training.list(LOCAL, 10)) == 1


async def test_a_running_job_shows_numbers_and_curves_and_only_what_is_new_is_sent(
    tab: TrainTab, visit: gr.Request, file_site: Site
) -> None:
    here = (await tab._demo(visit, None, None))[tab.here]
    token = run_job(file_site, here["job"])
    shown = await tab._tick(visit, here, None)
    assert "step 3 of 12 · pass 0.5 · loss 2.250 · 150 tokens/s · 30 s left" in shown[tab.panel.head]
    assert shown[tab.panel.curves].count("<polyline") == 3
    assert shown[tab.panel.cancel].visible is True
    again = await tab._tick(visit, here, shown[tab.seen])
    assert list(again) == [tab.seen]
    JobRepository(file_site.services.database).append(here["job"], token, "log", {"message": "New."})
    assert list(await tab._tick(visit, here, again[tab.seen])) == [tab.seen, tab.panel.log]


async def test_after_a_reload_everything_is_shown_again(tab: TrainTab, visit: gr.Request, file_site: Site) -> None:
    here = (await tab._demo(visit, None, None))[tab.here]
    run_job(file_site, here["job"])
    shown = await tab._tick(visit, here, None)
    restored = await tab._restore(visit, None, None, here, None)
    for component in (tab.panel.head, tab.panel.curves, tab.panel.log, tab.panel.list):
        assert restored[component] == shown[component]
    assert tab.here not in restored


async def test_a_waiting_job_is_cancelled_and_goes_on(tab: TrainTab, visit: gr.Request) -> None:
    here = (await tab._demo(visit, None, None))[tab.here]
    cancelled = await tab._cancel(visit, here, None)
    assert "cancelled" in cancelled[tab.panel.head]
    assert cancelled[tab.panel.resume].visible is True
    resumed = await tab._resume(visit, here, cancelled[tab.seen])
    assert "waiting" in resumed[tab.panel.head]
    assert resumed[tab.panel.resume].visible is False


async def test_rows_that_are_known_to_be_broken_are_decided_about_before_the_start(
    tab: TrainTab, visit: gr.Request, file_site: Site
) -> None:
    async with file_site.services.datasets.receive() as incoming:
        incoming.write(b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n{}\n')
        await file_site.services.datasets.add(LOCAL, incoming, "rows.jsonl", "rows")
    with pytest.raises(gr.Error, match='1 of 2 rows cannot be used: tick "Leave broken rows out"'):
        await tab._start(visit, None, "rows", "smollm2-135m", "", *values(drop_broken_rows=False))
    assert await file_site.services.training.list(LOCAL, 10) == ()
    await tab._start(visit, None, "rows", "smollm2-135m", "", *values(drop_broken_rows=True))
    assert len(await file_site.services.training.list(LOCAL, 10)) == 1


async def test_a_result_is_compared_with_its_base(tab: TrainTab, visit: gr.Request, file_site: Site) -> None:
    here = (await tab._demo(visit, None, None))[tab.here]
    with pytest.raises(gr.Error, match="no result yet"):
        [html async for html in tab._compare(visit, here)]
    finish(file_site, here["job"])
    assert (await tab._tick(visit, here, None))[tab.panel.result].visible is True
    pages = [html async for html in tab._compare(visit, here)]
    assert pages[-1].count("<article") == 4
    assert "Who are you?" in pages[-1]
    assert "<dd>…</dd>" in pages[1]
    assert "<dd>…</dd>" not in pages[-1]


async def test_serve_this_makes_the_result_the_default(tab: TrainTab, visit: gr.Request, file_site: Site) -> None:
    here = (await tab._demo(visit, None, None))[tab.here]
    with pytest.raises(gr.Error, match="no result yet"):
        await tab._serve(visit, here)
    finish(file_site, here["job"])
    await tab._serve(visit, here)
    assert await file_site.services.models.default_name() == "smollm2-135m:mini-claude@1"
    assert (await tab._take(visit, {"dataset": demo.DATASET}, None))[tab.form.model].value == "smollm2-135m"


async def test_a_user_trains_and_cannot_serve_the_result_to_everybody(
    tab: TrainTab, visit: gr.Request, foreign_visit: gr.Request, file_site: Site
) -> None:
    for request, admin in ((foreign_visit, False), (visit, True)):
        here = (await tab._demo(request, None, None))[tab.here]
        finish(file_site, here["job"])
        shown = await tab._tick(request, here, None)
        assert shown[tab.panel.result].visible
        assert (tab.panel.serve in shown) is admin  # else it stays as it was made: invisible
        if not admin:
            with pytest.raises(gr.Error, match="only an admin may"):
                await tab._serve(request, here)
    assert not tab.panel.serve.visible
    assert await file_site.services.models.default_name() == "smollm2-135m"


async def test_what_is_missing_is_told(tab: TrainTab, visit: gr.Request) -> None:
    with pytest.raises(gr.Error, match="Choose a dataset first"):
        await tab._start(visit, None, None, None, "", *values())
    with pytest.raises(gr.Error, match="Choose a training"):
        await tab._cancel(visit, {"job": None}, None)
    with pytest.raises(gr.Error, match="Learning rate"):
        await tab._start(visit, None, "d", None, "", *values(learning_rate=-1.0))


async def test_a_job_is_started_as_the_form_says(
    tab: TrainTab, visit: gr.Request, file_site: Site, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('["Hi", "Yo"]\n')
    with gr.Blocks():
        await DataTab(file_site.services, gr.BrowserState())._add(visit, str(path), "rows")
    update = await tab._start(visit, None, "rows", None, " bot ", *values(max_steps=2, r=4))
    job = await file_site.services.training.get(LOCAL, update[tab.here]["job"])
    assert (job.spec.adapter_name, job.spec.lora.r, job.spec.arguments.max_steps) == ("bot", 4, 2)
    taken = await tab._take(visit, {"dataset": "rows"}, None)
    assert taken[tab.form.dataset].value == "rows"


async def test_of_others_jobs_nothing_is_seen(tab: TrainTab, visit: gr.Request, foreign_visit: gr.Request) -> None:
    here = (await tab._demo(visit, None, None))[tab.here]
    update = await tab._restore(foreign_visit, None, None, here, None)
    assert tab.panel.head not in update
    assert tab.panel.list not in update
