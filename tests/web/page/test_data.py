"""The Data tab's events over real services."""

from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from mini_claude.services.identity import LOCAL
from mini_claude.web.page.data import DataTab

from ..conftest import Site

ROWS = '["Hi", "Yo <b>"]\n["Alone"]\n["A", "B"]\n'


@pytest.fixture
async def tab(site: Site) -> DataTab:
    with gr.Blocks():
        return DataTab(site.services, gr.BrowserState({"dataset": None}))


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "My Rows.jsonl"
    file.write_text(ROWS)
    return str(file)


def click(value: object) -> gr.SelectData:
    return gr.SelectData(None, {"index": 0, "value": value})


async def test_a_file_is_taken_in_shown_and_the_form_is_empty_again(tab: DataTab, path: str, visit: gr.Request) -> None:
    assert await tab._suggest(path) == "my-rows"
    update = await tab._add(visit, path, "rows")
    assert update[tab.here] == {"dataset": "rows"}
    assert "1 of 3 rows cannot be used" in update[tab.details]
    assert [item["title"] for item in update[tab.list]] == ["rows"]
    assert (update[tab.file], update[tab.name]) == (None, "")


async def test_without_a_file_and_without_a_choice_one_is_told_what_to_do(tab: DataTab, visit: gr.Request) -> None:
    with pytest.raises(gr.Error, match="Choose a file first"):
        await tab._add(visit, None, "")
    with pytest.raises(gr.Error, match="Choose a dataset first"):
        await tab._preview(visit, {"dataset": None}, None, 3, 512)


async def test_a_preview_shows_tokens_and_figures(tab: DataTab, path: str, visit: gr.Request) -> None:
    await tab._add(visit, path, "rows")
    html = await tab._preview(visit, {"dataset": "rows"}, None, 2, 512)
    assert "<mark>" in html
    assert "&lt;" in html
    assert "1 row cannot be used" in html
    with pytest.raises(gr.Error, match="Longest example"):
        await tab._preview(visit, {"dataset": "rows"}, None, 2, None)


async def test_others_see_nothing_of_it(tab: DataTab, path: str, visit: gr.Request, foreign_visit: gr.Request) -> None:
    await tab._add(visit, path, "rows")
    update = await tab._open(foreign_visit, click("rows"))
    assert update[tab.list] == []
    assert update[tab.here] == {"dataset": None}
    with pytest.raises(gr.Error, match="no dataset"):
        await tab._delete(foreign_visit, {"dataset": "rows"})


async def test_a_deleted_dataset_is_gone(tab: DataTab, path: str, visit: gr.Request, site: Site) -> None:
    await tab._add(visit, path, "rows")
    update = await tab._delete(visit, {"dataset": "rows"})
    assert update[tab.list] == []
    assert await site.services.datasets.list(LOCAL) == ()


async def test_without_feedback_one_is_told_how_to_give_some(tab: DataTab, visit: gr.Request) -> None:
    for source in ("rated", "preferences"):
        with pytest.raises(gr.Error, match="yet"):
            await tab._make(visit, source, "mine")


async def test_opening_the_tab_looks_for_what_was_added_elsewhere(tab: DataTab, path: str, visit: gr.Request) -> None:
    await tab._add(visit, path, "rows")
    update: dict[Any, Any] = await tab._opened(visit, click("Data"), {"dataset": None})
    assert [item["title"] for item in update[tab.list]] == ["rows"]
    assert tab.list not in await tab._opened(visit, click("Chat"), {"dataset": None})
