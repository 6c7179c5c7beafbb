"""How the page looks: Gradio's soft theme in the system's own fonts, since nothing is loaded from elsewhere."""

from importlib.resources import files
from typing import Final

import gradio as gr

TITLE: Final = "Mini-Claude"
CSS: Final = files("mini_claude.web.page").joinpath("page.css").read_text()
HEAD: Final = '<meta name="color-scheme" content="light dark">'
_SANS: Final = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_MONO: Final = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def page_theme() -> gr.themes.Base:
    """Light and dark follow the browser."""
    return gr.themes.Soft(primary_hue="orange", neutral_hue="stone", font=_SANS, font_mono=_MONO)
