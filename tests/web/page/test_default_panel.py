"""The default's panel: everybody sees what answers, admins choose it and go back."""

import gradio as gr
import pytest

from mini_claude.web.page.default_panel import DefaultPanel

from ..conftest import Site


@pytest.fixture
async def panel(site: Site) -> DefaultPanel:
    with gr.Blocks(), gr.Tab("Models") as tab:
        return DefaultPanel(site.services, tab)


async def test_an_admin_chooses_another_default_and_goes_back(
    panel: DefaultPanel, site: Site, visit: gr.Request
) -> None:
    site.place("dialogpt-medium")
    model, choose, back = await panel._look(visit)
    assert (model.value, model.interactive, choose.interactive, back.interactive) == ("smollm2-135m", True, True, False)
    model, _, back = await panel._choose(visit, "dialogpt-medium")
    assert (model.value, back.value, back.interactive) == ("dialogpt-medium", "Back to smollm2-135m", True)
    await panel._roll_back(visit)
    assert await site.services.models.default_name() == "smollm2-135m"


async def test_a_user_sees_the_default_and_cannot_change_it(
    panel: DefaultPanel, site: Site, visit: gr.Request, foreign_visit: gr.Request
) -> None:
    site.place("dialogpt-medium")
    await panel._choose(visit, "dialogpt-medium")
    model, *buttons = await panel._look(foreign_visit)
    assert (model.value, model.interactive) == ("dialogpt-medium", False)
    assert [button.interactive for button in buttons] == [False, False]
    for attempt in (panel._choose(foreign_visit, "smollm2-135m"), panel._roll_back(foreign_visit)):
        with pytest.raises(gr.Error, match="only an admin may"):
            await attempt
    assert await site.services.models.default_name() == "dialogpt-medium"


async def test_what_is_not_on_this_machine_cannot_answer_everybody(panel: DefaultPanel, visit: gr.Request) -> None:
    with pytest.raises(gr.Error, match="mini-claude models pull dialogpt-large"):
        await panel._choose(visit, "dialogpt-large")
