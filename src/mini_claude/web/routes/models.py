"""The native API's models: what there is, loading and unloading."""

from fastapi import APIRouter, Depends

from mini_claude.types import ModelInfo
from mini_claude.web.deps import ServicesDep, caller_of
from mini_claude.web.schemas.models import ModelList, ModelLoad, ModelUnload

router = APIRouter(prefix="/api/v1/models", tags=["models"], dependencies=[Depends(caller_of)])


@router.get("")
async def list_models(services: ServicesDep) -> ModelList:
    """Every model with its state and, when loaded, its memory."""
    return ModelList(default=services.settings.default_model, models=list(await services.models.list()))


@router.post("/load")
async def load_model(body: ModelLoad, services: ServicesDep) -> ModelInfo:
    """Load a model and wait until it is ready; a failure leaves what was loaded as it is."""
    return await services.models.load(body.model, body.overrides())


@router.post("/unload")
async def unload_model(body: ModelUnload, services: ServicesDep) -> ModelInfo:
    """End a model's process after its running replies; its memory is free when this returns."""
    await services.models.unload(body.model)
    return await services.models.get(body.model)


@router.get("/{name}")
async def get_model(name: str, services: ServicesDep) -> ModelInfo:
    """One model."""
    return await services.models.get(name)
