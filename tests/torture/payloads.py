"""Texts that want to be paths or addresses, and a file and a listener outside of everything that none may reach."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

TRAVERSALS: Final = [
    prefix + target + suffix
    for target in (
        "CANARY",
        "../CANARY",
        "../../../../etc/passwd",
        "..\\..\\..\\windows\\win.ini",
        "....//....//etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "..%252f..%252fetc%252fpasswd",
        "%c0%ae%c0%ae/etc/passwd",
        "..",
        "../",
    )
    for prefix in ("", "/", "\\", "file://", "file:///", "~/", "C:\\", "\\\\host\\", "//", "./", "%2e%2e%2f")
    for suffix in ("", "\x00", "%00.gguf")
]
SECRET: Final = "tweet-5f0c9a"


@dataclass(frozen=True)
class Canary:
    """A file beside the data directory, and who listens. `payloads` are all of TRAVERSALS with the real path."""

    path: Path
    payloads: list[str]
    address: str

    def some(self, number: int, num_payloads: int) -> Iterator[str]:
        """The address, and of the paths so many that it is `num_payloads` for the field with this number.

        Many fields together get all paths.
        """
        yield self.address
        num_payloads = max(num_payloads - 1, 1)
        step = len(self.payloads) / num_payloads
        for index in range(num_payloads):
            yield self.payloads[(int(index * step) + number) % len(self.payloads)]


@contextmanager
def canary(data_dir: Path) -> Iterator[Canary]:
    """Put it there, and see afterwards that nothing touched it and nothing came beside it."""
    path = data_dir.parent / f"{data_dir.name}-canary.json"  # a suffix that uploads may have
    path.write_text(SECRET)
    before = _state(path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/{path.name}"
        yield Canary(path, [payload.replace("CANARY", str(path)) for payload in TRAVERSALS], address)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert path.read_text() == SECRET
    assert _state(path) == before


def _state(path: Path) -> tuple[float, set[Path]]:
    return path.stat().st_mtime_ns, set(path.parent.iterdir())
