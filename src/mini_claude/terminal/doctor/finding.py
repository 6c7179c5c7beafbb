"""What a check found."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `fix` says what to do; one that is ok may have one too, for what could be better."""

    level: Level
    found: str
    fix: str = ""
