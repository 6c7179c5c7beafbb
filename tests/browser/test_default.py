"""The tuned model becomes the default while a page is open, answers, and is rolled back."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from ..end_to_end.conftest import Server
from ..training.tiny_adapters import save_adapter
from .test_chat import ask

pytestmark = [pytest.mark.real_model, pytest.mark.alone]

MODEL = "smollm2-135m"
ADAPTER = f"{MODEL}:served@1"


@pytest.fixture
def adapter(server: Server, tmp_path: Path) -> Iterator[str]:
    """An adapter that answers nearly as its base; it is gone after the test, and so is its place as the default."""
    folder = save_adapter(server.data_dir / "models" / MODEL, tmp_path / "peft", size=0.02)
    files = {
        field: (name, (folder / name).read_bytes())
        for field, name in (("config", "adapter_config.json"), ("weights", "adapter_model.safetensors"))
    }
    made = server.http.post("/api/v1/models/adapters", data={"model": MODEL, "name": "served"}, files=files)
    assert made.status_code == 201, made.text
    yield ADAPTER
    server.http.put("/api/v1/default-model", json={"model": MODEL})
    server.http.delete(f"/api/v1/models/adapters/{ADAPTER}")


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def ask_anew(page: Page) -> None:
    """A question in a new chat."""
    open_tab(page, "Chat")
    page.click("#new-chat")
    expect(page.locator("#chatbot .message")).to_have_count(0)
    ask(page, "Name the capital of France.")


def test_a_new_default_answers_in_an_open_page_and_is_rolled_back(page: Page, adapter: str) -> None:
    open_tab(page, "Models")
    page.click("#default-model input")
    page.get_by_role("option", name=adapter).click()
    page.click("#make-default")
    expect(page.locator("#roll-back")).to_contain_text(f"Back to {MODEL}")
    ask_anew(page)
    expect(page.locator("#facts")).to_contain_text(adapter)
    open_tab(page, "Models")
    page.click("#roll-back")
    expect(page.locator("#default-model input")).to_have_value(MODEL)
    ask_anew(page)
    expect(page.locator("#facts")).to_contain_text(MODEL)
    expect(page.locator("#facts")).not_to_contain_text(adapter)
