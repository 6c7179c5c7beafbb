"""The native API's adapters: what was trained, how it was proven, and deleting a version."""

from fastapi import APIRouter, Depends

from mini_claude.web.deps import CallerDep, ServicesDep, caller_of
from mini_claude.web.schemas.adapters import AdapterList, AdapterPublic

router = APIRouter(prefix="/api/v1/models/adapters", tags=["models"], dependencies=[Depends(caller_of)])


@router.get("")
async def list_adapters(services: ServicesDep) -> AdapterList:
    """Every version of every adapter with its certificate."""
    return AdapterList(adapters=[AdapterPublic.of(version) for version in await services.adapters.list()])


@router.get("/{reference}")
async def get_adapter(reference: str, services: ServicesDep) -> AdapterPublic:
    """One version; model:adapter is its newest."""
    return AdapterPublic.of(await services.adapters.find(reference))


@router.delete("/{reference}", status_code=204)
async def delete_adapter(reference: str, services: ServicesDep, caller: CallerDep) -> None:
    """Delete one version, model:adapter@version, with its files; only its owner may."""
    await services.adapters.remove(caller, reference)
