"""Whether requests can be served now, part by part."""

import asyncio
from dataclasses import dataclass
from typing import Final

from mini_claude.errors import MiniClaudeError
from mini_claude.services.services import Services
from mini_claude.types import ModelState

CHECK_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Health:
    """`database` and `supervisor` are "ok", or say what is wrong; without a supervisor no model has a state."""

    database: str
    supervisor: str
    default_model: str
    default_model_state: ModelState | None

    @property
    def ready(self) -> bool:
        """Whether a chat would be answered."""
        return self.database == self.supervisor == "ok" and self.default_model_state not in ("loading", "failed")


async def check_health(services: Services) -> Health:
    """Ask each part, for at most five seconds; raises nothing that a part can raise."""
    database = await _database(services)
    name, supervisor, state = await _default_model(services)
    return Health(database, supervisor, name, state)


async def _database(services: Services) -> str:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await services.keys.list()
    except (MiniClaudeError, TimeoutError) as error:
        return _reason(error)
    return "ok"


async def _default_model(services: Services) -> tuple[str, str, ModelState | None]:
    """Its name, whether the supervisor answers, and its state."""
    name = services.settings.default_model
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            info = await services.models.default_info()
            return info.name, "ok", info.state
    except (MiniClaudeError, TimeoutError) as error:
        return name, _reason(error), None


def _reason(error: MiniClaudeError | TimeoutError) -> str:
    return error.message if isinstance(error, MiniClaudeError) else f"no answer within {CHECK_SECONDS:.0f} s"
