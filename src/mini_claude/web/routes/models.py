"""The native API's models: what there is, loading and unloading."""

from fastapi import APIRouter, Depends

from mini_claude.types import ModelInfo
from mini_claude.web.deps import ADMIN_ONLY, ADMIN_RESPONSES, CallerDep, ServicesDep, caller_of
from mini_claude.web.schemas.errors import errors
from mini_claude.web.schemas.models import DefaultModelChange, DefaultModelPublic, ModelList, ModelLoad, ModelUnload

MAX_HISTORY = 20

router = APIRouter(prefix="/api/v1/models", tags=["models"], dependencies=[Depends(caller_of)])
# Not under the models, of which "default" is an alias.
default_router = APIRouter(prefix="/api/v1/default-model", tags=["models"], dependencies=[Depends(caller_of)])


@router.get("")
async def list_models(services: ServicesDep, caller: CallerDep) -> ModelList:
    """Every model that the caller may use, with its state and, when loaded, its memory."""
    return ModelList(default=await services.models.default_name(), models=list(await services.models.list(caller)))


@router.post("/load", dependencies=[ADMIN_ONLY], responses=ADMIN_RESPONSES | errors(404, 409))
async def load_model(body: ModelLoad, services: ServicesDep) -> ModelInfo:
    """Load a model and wait until it is ready; a failure leaves what was loaded as it is. For admins."""
    return await services.models.load(body.model, body.overrides())


@router.post("/unload", dependencies=[ADMIN_ONLY], responses=ADMIN_RESPONSES | errors(404, 409))
async def unload_model(body: ModelUnload, services: ServicesDep, caller: CallerDep) -> ModelInfo:
    """End a model's process after its running replies; its memory is free when this returns. For admins."""
    await services.models.unload(body.model)
    return await services.models.get(caller, body.model)


@default_router.get("")
async def get_default(services: ServicesDep) -> DefaultModelPublic:
    """What answers where no model is named, and what was chosen before."""
    return DefaultModelPublic(
        model=await services.models.default_name(), history=list(await services.models.default_history(MAX_HISTORY))
    )


@default_router.put("", dependencies=[ADMIN_ONLY], responses=ADMIN_RESPONSES | errors(404, 409))
async def set_default(body: DefaultModelChange, services: ServicesDep) -> DefaultModelPublic:
    """Let another model, or an adapter's version, answer where none is named. To roll back, name the one before.

    For admins.
    """
    await services.models.set_default(body.model)
    return await get_default(services)


@router.get("/{name}", responses=errors(404))
async def get_model(name: str, services: ServicesDep, caller: CallerDep) -> ModelInfo:
    """One model."""
    return await services.models.get(caller, name)
