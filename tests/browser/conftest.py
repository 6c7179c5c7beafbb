"""A real server with the embedded model, seen through Debian's Chromium. Screenshots go to artifacts/browser/."""

import functools
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from ..conftest import REPOSITORY
from ..end_to_end.conftest import START_SECONDS, Server, serving, until, with_model

SHOTS = REPOSITORY / "artifacts" / "browser"
WAIT_MS = 60_000
expect.set_options(timeout=WAIT_MS)
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-background-networking"]

OpenPage = Callable[..., Page]
# Gradio writes a field's value in the frame after the field appears, over what a hand quicker than a person's typed.
FRAMES_LATER = (
    "new Promise(then => requestAnimationFrame(() => requestAnimationFrame(() => requestAnimationFrame(then))))"
)


def open_settings(page: Page, accordion: str) -> None:
    """Opens the accordion that the selector names, and waits until its fields can be filled."""
    page.click(f"{accordion} > button")
    expect(page.locator(accordion).locator("input, textarea").last).to_be_visible()
    page.evaluate(FRAMES_LATER)


@contextmanager
def page_server(data_dir: Path, **settings: str) -> Iterator[Server]:
    """A server whose model and page are ready."""
    key = {"x-api-key": settings["api_key"]} if "api_key" in settings else {}
    with serving(data_dir, page="true", **settings) as server:
        for path, what in (("/api/v1/health", "model"), ("/", "page")):
            until(functools.partial(_answers, server, path, key), START_SECONDS, f"the {what} is not ready")
        yield server


def _answers(server: Server, path: str, headers: dict[str, str]) -> bool:
    return server.http.get(path, headers=headers).status_code == 200


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, smollm2_folder: Path) -> Iterator[Server]:
    """One for all browser tests that do not break it."""
    with page_server(with_model(tmp_path_factory.mktemp("browser"), smollm2_folder)) as server:
        yield server


@pytest.fixture
def base_url(server: Server) -> str:
    return server.url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Playwright keeps an event loop running, which asynchronous tests could not stand: so for a module only."""
    program = next(filter(None, map(shutil.which, CHROMIUM)), None)
    assert program is not None, "install Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Opens pages of visitors of their own. No console error and no request to elsewhere may have come of any."""
    complaints: list[str] = []
    pages: list[Page] = []

    def open_one(
        url: str, *, width: int = 1280, height: int = 850, dark: bool = False, tolerate: tuple[str, ...] = ()
    ) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", accept_downloads=True
        )
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        pages.append(page)

        def hear(message: ConsoleMessage) -> None:
            if message.type == "error" and not any(word in message.text for word in tolerate):
                complaints.append(message.text)

        def look(request: Request) -> None:
            if not request.url.startswith((url, "data:", "blob:")):
                complaints.append(f"asked elsewhere: {request.url}")

        page.on("console", hear)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", look)
        page.goto(url)
        return page

    yield open_one
    for page in pages:
        page.context.close()
    assert complaints == []


@pytest.fixture
def page(open_page: OpenPage, base_url: str) -> Page:
    page = open_page(base_url)
    page.wait_for_selector("#say textarea")
    return page


@pytest.fixture
def shoot(request: pytest.FixtureRequest) -> Callable[[Page, str], None]:
    """Keep a screenshot under the test's name and a word."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"\W+", "-", request.node.name)

    def shoot(page: Page, word: str) -> None:
        page.screenshot(path=SHOTS / f"{name}.{word}.png")

    return shoot
