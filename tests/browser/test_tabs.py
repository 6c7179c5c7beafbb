"""Compare, Models and System as somebody uses them who never opens a terminal."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from ..end_to_end.conftest import Server
from ..training.tiny_adapters import save_adapter
from .conftest import OpenPage, open_settings

pytestmark = [pytest.mark.real_model, pytest.mark.alone]

Shoot = Callable[[Page, str], None]
QUESTION = "Name the capital of France."
MODEL = "smollm2-135m"


@pytest.fixture
def adapter(server: Server, tmp_path: Path) -> Iterator[Path]:
    """As PEFT saves one for the embedded model; what is made of it is gone after the test."""
    yield save_adapter(server.data_dir / "models" / MODEL, tmp_path / "peft", size=0.02)
    for each in server.http.get("/api/v1/models/adapters").json()["adapters"]:
        server.http.delete(f"/api/v1/models/adapters/{each['reference']}")


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def ask(page: Page, question: str) -> None:
    page.fill("#compare-question textarea", question)
    page.press("#compare-question textarea", "Enter")


def sampling(page: Page, which: str, temperature: str) -> None:
    open_settings(page, f"#{which}-settings")
    field = page.locator(f"#{which}-settings input[type=number]").first
    field.fill(temperature)
    field.press("Tab")
    longest = page.locator(f"#{which}-settings input[type=number]").nth(1)
    longest.fill("40")
    longest.press("Tab")


def test_two_settings_of_one_model_are_compared_blind(page: Page, shoot: Shoot) -> None:
    open_tab(page, "Compare")
    expect(page.locator("#first-model input")).to_have_value(MODEL)
    sampling(page, "first", "0")
    sampling(page, "second", "1.3")
    ask(page, QUESTION)
    expect(page.locator("#compare-both_good")).to_be_enabled()
    expect(page.locator("#answer-a")).not_to_have_text("")
    for place in ("#title-a", "#title-b", "#proof-a", "#proof-b", "#compare-verdict"):
        expect(page.locator(place)).not_to_contain_text(MODEL)
    shoot(page, "blind")
    page.click("#compare-both_good")
    for side in ("a", "b"):
        expect(page.locator(f"#title-{side}")).to_contain_text(MODEL)
        expect(page.locator(f"#proof-{side}")).to_contain_text(re.compile(r"sha256 [0-9a-f]{12}"))
        expect(page.locator(f"#compare-{side}")).to_be_disabled()
    proofs = page.locator("#proof-a").inner_text() + page.locator("#proof-b").inner_text()
    assert {"temperature 0,", "temperature 1.3,"} <= set(re.findall(r"temperature [\d.]+,", proofs))
    shoot(page, "shown")


def test_answers_that_were_stopped_cannot_be_compared(page: Page) -> None:
    open_tab(page, "Compare")
    ask(page, "Count from one to two hundred in words, without leaving anything out.")
    page.click("#compare-question button.stop-button")
    expect(page.locator("#compare-verdict")).to_contain_text("ask again")
    expect(page.locator("#compare-a")).to_be_disabled()


def test_an_empty_question_is_refused_in_words(page: Page) -> None:
    open_tab(page, "Compare")
    ask(page, " ")
    expect(page.locator(".toast-body").first).to_contain_text("The question is empty")


def test_a_model_is_unloaded_and_loaded_again(page: Page, server: Server, shoot: Shoot) -> None:
    open_tab(page, "Models")
    card = page.locator("#models article", has_text=MODEL)
    expect(card).to_contain_text("ready")
    card.get_by_role("button", name="Unload").click()
    expect(card).to_contain_text("not loaded")
    assert server.pids(f"engine:{MODEL}") == []
    card.get_by_role("button", name="Load").click()
    expect(card).to_contain_text("ready")
    expect(card).to_contain_text("MB")
    shoot(page, "loaded")


def test_a_model_that_is_not_on_this_machine_says_so(page: Page) -> None:
    open_tab(page, "Models")
    card = page.locator("#models article", has_text="dialogpt-small")
    expect(card).to_contain_text("not on this machine")
    expect(card).to_contain_text("mini-claude models pull dialogpt-small")
    expect(card.get_by_role("button")).to_have_count(0)


def test_an_adapter_is_imported_exported_and_deleted(page: Page, adapter: Path, tmp_path: Path, shoot: Shoot) -> None:
    open_tab(page, "Models")
    page.click("#adapter-import > button")
    page.set_input_files(
        "#import-files input[type=file]",
        [str(adapter / name) for name in ("adapter_config.json", "adapter_model.safetensors")],
    )
    expect(page.locator("#import-files")).to_contain_text("adapter_model")
    page.fill("#import-name input, #import-name textarea", "bot")
    page.click("#import-button")
    expect(page.locator("#adapters button[aria-pressed=true]")).to_contain_text("not verified")
    expect(page.locator("#adapter-details")).to_contain_text("exactly the weights it was made for")
    shoot(page, "imported")
    page.click("#adapter-export")
    link = page.locator("#export-files a").first
    expect(link).to_be_visible()
    with page.expect_download() as download:
        link.click()
    download.value.save_as(tmp_path / "got.zip")
    assert (tmp_path / "got.zip").read_bytes().startswith(b"PK")
    page.reload()
    open_tab(page, "Models")
    expect(page.locator("#errands")).to_contain_text("done in")
    bot = page.locator('#adapters button[data-value$=":bot@1"]')
    bot.click()
    page.click("#adapter-delete")
    page.click("#adapter-confirm")
    expect(bot).to_have_count(0)
    expect(page.locator("#adapter-panel")).to_be_hidden()


def test_the_system_is_plotted_live(page: Page, shoot: Shoot) -> None:
    open_tab(page, "System")
    expect(page.locator("#system-health")).to_contain_text("Ready to answer")
    expect(page.locator("#system-plots figure")).to_have_count(6)
    expect(page.locator("#system-plots")).to_contain_text(f"engine:{MODEL}")
    line = page.locator("#system-plots polyline").first
    before = line.get_attribute("points")
    assert before is not None
    expect(line).not_to_have_attribute("points", before)
    shoot(page, "system")


@pytest.mark.parametrize("name", ["Compare", "Models", "System"])
def test_it_fits_a_phone_in_the_dark(open_page: OpenPage, base_url: str, shoot: Shoot, name: str) -> None:
    page = open_page(base_url, width=390, height=844, dark=True)
    page.wait_for_selector("#say textarea")
    expect(page.locator("#sidebar")).not_to_have_class(re.compile(r"\bopen\b"))  # it would lie over everything
    tab = page.get_by_role("tab", name=name)
    if not tab.is_visible():  # those that do not fit are in a menu
        page.locator(".overflow-menu > button").click()
        tab = page.locator(".overflow-dropdown button", has_text=name)
    tab.click()
    shown = {"Compare": "#compare-question", "Models": "#models article", "System": "#system-plots figure"}[name]
    expect(page.locator(shown).first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    shoot(page, "phone")
