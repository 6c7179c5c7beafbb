"""Files that a visitor downloads: written where Gradio may serve from, gone within a day."""

import secrets
import shutil
from pathlib import Path

from mini_claude.utils.config import Settings
from mini_claude.utils.files import storage_errors


def write_download(settings: Settings, file_name: str, text: str) -> str:
    """The path of a new file in a folder whose name nobody can guess. `file_name` is made by us."""
    path = _new_path(settings, file_name)
    path.write_text(text, encoding="utf-8")
    return str(path)


def keep_download(settings: Settings, file_name: str, path: Path) -> Path:
    """Move a file that may be a whole model to where it can be downloaded from; its new path. Raises `StorageError`."""
    with storage_errors(settings.page_files_dir):
        return Path(shutil.move(path, _new_path(settings, file_name)))


def _new_path(settings: Settings, file_name: str) -> Path:
    folder = settings.page_files_dir / secrets.token_hex(16)
    folder.mkdir(mode=0o700, parents=True)
    return folder / Path(file_name).name
