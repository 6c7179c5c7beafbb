"""Which models exist by name: the built-in ones and those that an administrator added. Needs no running server."""

from collections.abc import Sequence
from typing import Final

from anyio.to_thread import run_sync

from mini_claude.data.models import ModelRepository
from mini_claude.errors import Conflict, InvalidRequest, NotFound
from mini_claude.models.catalog import BUILTIN, valid_model_name
from mini_claude.services.default_model import DefaultModel
from mini_claude.types import ModelSpec

DEFAULT_ALIAS: Final = "default"
_BUILTIN: Final = {spec.name: spec for spec in BUILTIN}


class Catalog:
    """Names to model specs."""

    def __init__(self, repository: ModelRepository, default: DefaultModel) -> None:
        self._repository = repository
        self.default = default

    async def real_name(self, name: str | None) -> str:
        """The model's name behind None and the alias "default", which may mean an adapter on it."""
        if name is not None and name != DEFAULT_ALIAS:
            return name
        return (await self.default.current()).partition(":")[0]

    async def resolve(self, name: str | None) -> ModelSpec:
        """The entry behind a name; None and "default" are the default model. Raises `NotFound`."""
        wanted = await self.real_name(name)
        spec = _BUILTIN.get(wanted)
        if spec is None and valid_model_name(wanted):
            spec = await run_sync(self._repository.find, wanted)
        if spec is None:
            raise NotFound(
                f"There is no model {wanted[:80]!r}; `mini-claude models list` or GET /v1/models shows the names.",
                code="model_not_found",
                param="model",
            )
        return spec

    def is_builtin(self, name: str) -> bool:
        """Whether the entry came with the program."""
        return name in _BUILTIN

    async def list(self) -> Sequence[ModelSpec]:
        """Built-in models, then added ones by name."""
        return (*BUILTIN, *await run_sync(self._repository.list))

    async def add(self, spec: ModelSpec) -> None:
        """Add an entry. Raises `InvalidRequest` for its name and `Conflict` when that is taken."""
        if not valid_model_name(spec.name):
            raise InvalidRequest(
                f"{spec.name[:80]!r} cannot name a model: use up to 64 lower-case letters, digits, '.', '_' and '-', "
                "not starting with a dot.",
                param="name",
            )
        if spec.name in _BUILTIN or spec.name == DEFAULT_ALIAS:
            raise Conflict(f"The name {spec.name!r} is built in; choose another one.", param="name")
        await run_sync(self._repository.add, spec)

    async def remove(self, name: str) -> None:
        """Take an added entry out; what is loaded stays. Raises `NotFound` and `Conflict`."""
        if name in _BUILTIN:
            raise Conflict(f"The model {name!r} is built in and cannot be removed.", param="name")
        await run_sync(self._repository.remove, name)
