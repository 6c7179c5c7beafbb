"""Which of the hosts that share a database we are. A host is a data directory and the processes that work on it."""

import os
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Final

from mini_claude.data.database import Database
from mini_claude.utils.files import storage_errors

FILE: Final = "host-id"


def host_of(database: Database, data_dir: Path) -> str | None:
    """The id of this data directory, made when it is first asked for; None where no other one can share the database.

    Raises `StorageError`.
    """
    if not database.shared:
        return None
    with storage_errors(data_dir):
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=data_dir) as made:
            made.write(uuid.uuid4().hex)
            made.flush()
            with suppress(FileExistsError):  # of several processes that start at once one is first
                os.link(made.name, data_dir / FILE)
        return (data_dir / FILE).read_text()
