"""Visitors of the page, as its handlers see them."""

import gradio as gr
import pytest

from mini_claude.services.identity import LOCAL
from mini_claude.web.page_line import KEY_HEADER, OWNER_HEADER, ROLE_HEADER

SOMEBODY_ELSE = "0" * 32


@pytest.fixture
def visit() -> gr.Request:
    """A request by whoever uses this machine."""
    return gr.Request(headers={OWNER_HEADER: LOCAL.owner, ROLE_HEADER: LOCAL.role})


@pytest.fixture
def foreign_visit() -> gr.Request:
    """A request by the owner of another key, a user's."""
    return gr.Request(headers={OWNER_HEADER: SOMEBODY_ELSE, KEY_HEADER: SOMEBODY_ELSE, ROLE_HEADER: "user"})
