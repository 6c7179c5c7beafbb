"""No event of the page is given a file that was not uploaded, and Gradio takes none to where it serves files."""

import os
from pathlib import Path

import gradio as gr
import pytest
from anyio.to_thread import run_sync

from mini_claude.web.page.uploads import UploadsOnly

PLACES = {"OUTSIDE": "outside.txt", "PARENT": "uploads/../outside.txt", "LINK": "uploads/link.txt"}


@pytest.fixture
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    (tmp_path / "uploads").mkdir()
    return tmp_path / "uploads"


async def given(component: type[gr.components.Component], value: object) -> object:
    """What an event's function is called with where a browser sends `value`."""
    with UploadsOnly() as page:
        own = component()
        gr.Button().click(lambda value: value, own, None)
    (inputs, *_) = await page.preprocess_data(page.fns[0], [value], None)
    return inputs


def named(path: object) -> dict[str, object]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


async def test_an_uploaded_file_arrives(uploads: Path) -> None:
    (uploads / "rows.txt").write_text("mine")
    assert await given(gr.File, named(str(uploads / "rows.txt"))) == str(uploads / "rows.txt")


@pytest.mark.parametrize("component", [gr.File, gr.Textbox, gr.BrowserState])
@pytest.mark.parametrize("path", [*PLACES, "http://127.0.0.1:9/x.txt", "/etc/passwd", "a\0b", None, 1, ""])
async def test_no_other_file_does_whatever_the_component(
    uploads: Path, component: type[gr.components.Component], path: object
) -> None:
    (uploads.parent / "outside.txt").write_text("canary")
    (uploads / "link.txt").symlink_to(uploads.parent / "outside.txt")
    if isinstance(path, str) and path in PLACES:
        path = f"{uploads.parent}/{PLACES[path]}"
    for value in (named(path), [named(path)], {"x": [named(path)]}):
        with pytest.raises(gr.Error, match="file of your own"):
            await given(component, value)
    assert await run_sync(os.listdir, uploads) == ["link.txt"]
