"""What a child process is told when it starts: one line of JSON on its standard input.

Not arguments and not the environment, which other users of the machine can read: the addresses of a database and of
shared counters may hold a password. Engines never see them.
"""

from typing import Any

from mini_claude.runtime.messages import Struct
from mini_claude.types import LoadOptions, ModelSpec


class EngineLaunch(Struct, frozen=True):
    """All that an engine process is told. `settings` is `Settings.model_dump(mode="json")` without secrets."""

    spec: ModelSpec
    options: LoadOptions
    address: str
    supervisor_address: str
    settings: dict[str, Any]


class SupervisorLaunch(Struct, frozen=True):
    """All that a supervisor is told."""

    settings: dict[str, Any]
    database_url: str
    limits_url: str | None


class PageLaunch(Struct, frozen=True):
    """All that the page's process is told."""

    settings: dict[str, Any]
    database_url: str
    limits_url: str | None


class TrainerLaunch(Struct, frozen=True):
    """All that a trainer process is told."""

    job_id: str
    token: str
    settings: dict[str, Any]
    database_url: str
