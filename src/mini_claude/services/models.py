"""Models as the API shows them: what the catalog holds and what of it runs now."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, get_args

from anyio.to_thread import run_sync

from mini_claude.data.records import DefaultChoice
from mini_claude.errors import Conflict, InvalidRequest, StorageError
from mini_claude.models.materialize import is_materialized
from mini_claude.models.origin import origin_of
from mini_claude.runtime.runtime import Runtime
from mini_claude.services.adapters import AdapterService, ServedModel
from mini_claude.services.catalog import Catalog
from mini_claude.services.identity import Caller
from mini_claude.services.model_access import ModelAccess
from mini_claude.types import DTypeName, LoadOptions, ModelInfo, ModelOrigin, ModelSpec, Quantization
from mini_claude.utils.config import Settings

_DEVICE: Final = re.compile(r"auto|cpu|cuda(:\d+)?")


class ModelService:
    """The catalog and the running models behind one set of names."""

    def __init__(
        self, runtime: Runtime, catalog: Catalog, adapters: AdapterService, access: ModelAccess, settings: Settings
    ) -> None:
        self._runtime = runtime
        self._catalog = catalog
        self._adapters = adapters
        self._access = access
        self._settings = settings

    async def resolve(self, name: str | None) -> ModelSpec:
        """The entry behind a name, whoever asks; None and "default" are the default model. Raises `NotFound`."""
        return await self._catalog.resolve(name)

    async def usable(self, caller: Caller, name: str | None) -> ModelSpec:
        """The same for a model that the caller may use. Raises `NotFound` and `Forbidden`."""
        spec = await self.resolve(name)
        self._access.require_use(caller, spec.name)
        return spec

    async def trainable(self, caller: Caller, name: str | None) -> ModelSpec:
        """The same for a model that the caller may train. Raises `NotFound` and `Forbidden`."""
        spec = await self.resolve(name)
        self._access.require_train(caller, spec.name)
        return spec

    async def trainable_names(self, caller: Caller) -> tuple[str, ...]:
        """What the caller may train."""
        names = [info.name for info in await self.list(caller) if ":" not in info.name]
        return tuple(name for name in names if self._access.may_train(caller, name))

    async def serving(self, caller: Caller, name: str | None) -> ServedModel:
        """What answers the caller under a name, perhaps an adapter's. Raises `NotFound` and `Forbidden`."""
        served = await self._adapters.resolve(name)
        self._access.require_use(caller, served.spec.name)
        return served

    async def require_may_answer(self, caller: Caller, served: ServedModel) -> None:
        """Raise `Forbidden` unless the caller may use the model, and have it loaded where it is not in memory."""
        name = served.spec.name
        self._access.require_use(caller, name)
        if not self._access.may_load(caller, name):
            loaded = [info.name for info in (await self._runtime.status()).models if info.state == "ready"]
            self._access.require_loaded(caller, name, loaded)

    async def list(self, caller: Caller) -> Sequence[ModelInfo]:
        """Built-in models, then added ones by name, then any that still runs though it was removed, then adapters.

        Without those that the caller may not use.
        """
        specs = [spec for spec in await self._catalog.list() if self._access.may_use(caller, spec.name)]
        running = {
            info.name: info for info in (await self._runtime.status()).models if self._access.may_use(caller, info.name)
        }
        known = {spec.name: _describe(spec, running.pop(spec.name, None)) for spec in specs}
        adapters = [
            _as_adapter(version.reference, known[version.model])
            for version in await self._adapters.list(caller)
            if version.model in known
        ]
        return (*known.values(), *running.values(), *adapters)

    async def get(self, caller: Caller, name: str) -> ModelInfo:
        """One model or adapter as `list` shows it. Raises `NotFound` and `Forbidden`."""
        return await self._info(await self.serving(caller, name))

    async def _info(self, served: ServedModel) -> ModelInfo:
        running = {info.name: info for info in (await self._runtime.status()).models}
        info = _describe(served.spec, running.get(served.spec.name))
        return info if served.adapter is None else _as_adapter(served.name, info)

    async def origin(self, name: str) -> ModelOrigin | None:
        """Where a model's weights are from; None: they are not on this machine. Raises `NotFound`, `StorageError`."""
        spec = await self.resolve(name)
        try:
            return await run_sync(origin_of, spec, self._settings.models_dir)
        except OSError as error:
            raise StorageError(f"The files of {spec.name} cannot be read: {error.strerror}.") from error

    async def load(self, name: str | None, overrides: Mapping[str, object] | None = None) -> ModelInfo:
        """Load a model, with its own `dtype`, `device` or `quantization` where `overrides` gives them.

        Without overrides a copy that is loaded already will do, however it was loaded.

        Raises `NotFound`, `InvalidRequest` for an unknown override or value, `ModelLoadError`.
        """
        spec = await self.resolve(name)
        options = replace(self.options(), **_checked(overrides or {}))
        return _describe(spec, await self._runtime.load(spec, options, exact=bool(overrides)))

    async def unload(self, name: str) -> None:
        """End the model's process. Raises `NotFound` when it is not loaded."""
        await self._runtime.unload(await self._catalog.real_name(name))

    async def default_name(self) -> str:
        """What answers where no model is named. Its name is no secret from those who may not use it."""
        return (await self._adapters.resolve(None)).name

    async def default_info(self) -> ModelInfo:
        """How the default is, whoever asks."""
        return await self._info(await self._adapters.resolve(None))

    async def first_choice(self, caller: Caller) -> str | None:
        """What to offer the caller first: the default, else any model that the caller may use."""
        names = [info.name for info in await self.list(caller)]
        default = await self.default_name()
        return default if default in names else next(iter(names), None)

    async def set_default(self, reference: str) -> str:
        """Let this model or adapter answer where none is named; its name with its version.

        Raises `NotFound`, and `Conflict` for a model that would have to be downloaded first.
        """
        served = await self._adapters.resolve(reference)
        if served.spec.name in await self.not_downloaded():
            raise Conflict(
                f"Model {served.spec.name!r} is not on this machine; download it first: mini-claude models pull "
                f"{served.spec.name}",
                code="model_not_downloaded",
                param="model",
            )
        name = served.name
        await self._catalog.default.choose(name)
        return name

    async def not_downloaded(self) -> frozenset[str]:
        """The models whose files are on a hub only."""
        specs = [spec for spec in await self._catalog.list() if all(source.kind == "hub" for source in spec.sources)]
        folder = self._settings.models_dir
        here = [await run_sync(is_materialized, spec, folder) for spec in specs]
        return frozenset(spec.name for spec, found in zip(specs, here, strict=True) if not found)

    async def default_history(self, limit: int) -> Sequence[DefaultChoice]:
        """What was made the default, newest first; empty while the setting holds."""
        return await self._catalog.default.history(limit)

    def options(self) -> LoadOptions:
        """How models are loaded unless a load says otherwise."""
        return self._settings.load_options()


def _describe(spec: ModelSpec, running: ModelInfo | None) -> ModelInfo:
    info = running or ModelInfo(spec.name, "available")
    return replace(info, description=spec.description, license=spec.license)


def _as_adapter(reference: str, base: ModelInfo) -> ModelInfo:
    """An adapter is where its base is: no process and no memory are its own."""
    return replace(
        base, name=reference, description=f"LoRA adapter on {base.name}", memory_bytes=None, pid=None, restarts=0
    )


def _checked(overrides: Mapping[str, object]) -> dict[str, Any]:
    for name, value in overrides.items():
        match name:
            case "dtype":
                good, choices = value in get_args(DTypeName), ", ".join(get_args(DTypeName))
            case "quantization":
                good, choices = value in (None, *get_args(Quantization)), "null, int8, nf4"
            case "device":
                good = isinstance(value, str) and _DEVICE.fullmatch(value) is not None
                choices = "auto, cpu, cuda, cuda:N"
            case _:
                good, choices = False, "only dtype, device and quantization may be given"
        if not good:
            raise InvalidRequest(f"{name}={value!r} is not possible; choices: {choices}.", param=name)
    return dict(overrides)
