"""Visitors of the page, as its handlers see them."""

import gradio as gr
import pytest

from mini_claude.services.identity import LOCAL
from mini_claude.web.page_line import KEY_HEADER, OWNER_HEADER

SOMEBODY_ELSE = "0" * 32


@pytest.fixture
def visit() -> gr.Request:
    """A request by whoever uses this machine."""
    return gr.Request(headers={OWNER_HEADER: LOCAL.owner})


@pytest.fixture
def foreign_visit() -> gr.Request:
    """A request by the owner of another key."""
    return gr.Request(headers={OWNER_HEADER: SOMEBODY_ELSE, KEY_HEADER: SOMEBODY_ELSE})
