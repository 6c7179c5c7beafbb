"""Files that a visitor downloads: written where Gradio may serve from, gone within a day."""

import secrets
from pathlib import Path

from mini_claude.utils.config import Settings


def write_download(settings: Settings, file_name: str, text: str) -> str:
    """The path of a new file in a folder whose name nobody can guess. `file_name` is made by us."""
    folder = settings.page_files_dir / secrets.token_hex(16)
    folder.mkdir(mode=0o700, parents=True)
    path = folder / Path(file_name).name
    path.write_text(text, encoding="utf-8")
    return str(path)
