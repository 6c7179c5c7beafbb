"""A conversation as Markdown stays readable whatever was said in it."""

import pytest

from mini_claude.services.session_export import closed


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("plain", "plain"),
        ("```python\nprint(1)\n```", "```python\nprint(1)\n```"),
        ("So:\n```python\nprint(", "So:\n```python\nprint(\n```"),
        ("~~~~\n~~~\n```", "~~~~\n~~~\n```\n~~~~"),
        ("```\n```` x\n", "```\n```` x\n\n```"),
    ],
)
def test_a_code_block_ends_with_its_message(text: str, written: str) -> None:
    assert closed(text) == written
