"""The page as a whole: its tabs in their order."""

from typing import Any

import gradio as gr

from mini_claude.services.services import Services
from mini_claude.web.page.chat import ChatTab
from mini_claude.web.page.compare import CompareTab
from mini_claude.web.page.data import DataTab
from mini_claude.web.page.default_panel import DefaultPanel
from mini_claude.web.page.models import ModelsTab
from mini_claude.web.page.open_pages import rest
from mini_claude.web.page.system import SystemTab
from mini_claude.web.page.theme import TITLE
from mini_claude.web.page.train import TrainTab
from mini_claude.web.page.uploads import UploadsOnly
from mini_claude.web.page.xray import XrayTab

FILE_SECONDS = (3600, 86_400)  # how often what visitors uploaded and downloaded is looked at, and how old it may be

# Gradio's sidebar measures the room beside it when the window changes, also while it is on a tab that hides it.
_MEASURE_AGAIN = "() => requestAnimationFrame(() => window.dispatchEvent(new Event('resize')))"


def build_page(services: Services) -> gr.Blocks:
    """Everything at /."""
    page = UploadsOnly(title=TITLE, analytics_enabled=False, fill_height=True, delete_cache=FILE_SECONDS)
    with page:
        dataset_here = _kept("mini-claude-data", {"dataset": None})
        job_here = _kept("mini-claude-train", {"job": None})
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Chat", id="chat"):
                chat = ChatTab(services)
            with gr.Tab("Compare", id="compare"):
                compare = CompareTab(services)
            with gr.Tab("Data", id="data"):
                data = DataTab(services, dataset_here)
            with gr.Tab("Train", id="train"):
                train = TrainTab(services, job_here)
            with gr.Tab("Models", id="models") as models_tab:
                models = ModelsTab(services)
                DefaultPanel(services, models_tab)
            with gr.Tab("X-ray", id="xray") as xray:
                XrayTab(services, chat.view.here, xray)
            with gr.Tab("System", id="system"):
                system = SystemTab(services)
        tabs.select(None, None, None, js=_MEASURE_AGAIN)
        chat.start(page)
        compare.start(page, tabs)
        data.start(page, tabs)
        train.start(page, tabs, data)
        models.start(page, tabs)
        system.start(page, tabs)
    page.queue(default_concurrency_limit=None, max_size=1000)
    rest(page._queue)
    return page


def _kept(key: str, default: dict[str, Any]) -> gr.BrowserState:
    """What a browser remembers; not in a tab, since what is in one that was never open is not read back."""
    return gr.BrowserState(default, storage_key=key, secret="not-a-secret")  # noqa: S106
