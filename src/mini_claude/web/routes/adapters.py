"""The native API's adapters: what was trained and how it was proven; import, export, verify and delete a version."""

from typing import Any, Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import FileResponse

from mini_claude.services.adapters import MAX_CONFIG_BYTES
from mini_claude.web.deps import CallerDep, ServicesDep, caller_of
from mini_claude.web.one_time_file import OneTimeFile
from mini_claude.web.schemas.adapters import IMPORT_FORM, AdapterList, AdapterPublic, ExportOrder
from mini_claude.web.schemas.errors import errors
from mini_claude.web.streaming import unless_gone
from mini_claude.web.upload import ADAPTERS_PATH, FormShape, announced_bytes, receive_upload

UPLOAD = FormShape(
    ("weights", "config"),
    ("name", "model"),
    "max_adapter_bytes",
    "Send multipart/form-data with PEFT's adapter_config.json as `config`, its adapter_model.safetensors as `weights`, "
    "the base model's name as `model` and the adapter's as `name`.",
)

FILE: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string"}}}}
}

router = APIRouter(prefix=ADAPTERS_PATH, tags=["models"], dependencies=[Depends(caller_of)])


@router.get("")
async def list_adapters(services: ServicesDep, caller: CallerDep) -> AdapterList:
    """Every version of every adapter with its certificate."""
    return AdapterList(adapters=[AdapterPublic.of(version) for version in await services.adapters.list(caller)])


@router.post("", status_code=201, openapi_extra=IMPORT_FORM, responses=errors(404, 409))
async def import_adapter(request: Request, services: ServicesDep, caller: CallerDep) -> AdapterPublic:
    """Import a LoRA adapter that PEFT saved; it becomes the next version of model:name, and is served at once."""
    max_bytes = services.settings.max_adapter_bytes + MAX_CONFIG_BYTES
    num_bytes = announced_bytes(request, UPLOAD, max_bytes)
    async with services.adapters.receive(num_bytes) as incoming:
        form = await receive_upload(request, UPLOAD, incoming.write, max_bytes)
        adding = services.adapters.add(caller, incoming, form.field("name"), form.field("model"))
        return AdapterPublic.of(await unless_gone(request, adding))


@router.get("/{reference}", responses=errors(404))
async def get_adapter(reference: str, services: ServicesDep, caller: CallerDep) -> AdapterPublic:
    """One version; model:adapter is its newest."""
    return AdapterPublic.of(await services.adapters.find(caller, reference))


@router.post("/{reference}/export", response_class=FileResponse, responses=FILE | errors(404, 409))
async def export_adapter(
    reference: str, body: ExportOrder, request: Request, services: ServicesDep, caller: CallerDep
) -> OneTimeFile:
    """Make a version's file for other programs, and send it; only its owner may."""
    exporting = services.adapters.export(caller, reference, body.format, body.tensor_type)
    export = await unless_gone(request, exporting)
    return OneTimeFile(export.path, export.file_name, export.aclose)


@router.post("/{reference}/verify", responses=errors(404, 409))
async def verify_adapter(reference: str, request: Request, services: ServicesDep, caller: CallerDep) -> AdapterPublic:
    """Compare trainer, engine and exports anew, and store the certificate, passed or not; only its owner may."""
    return AdapterPublic.of(await unless_gone(request, services.adapters.verify(caller, reference)))


@router.delete("/{reference}", status_code=204, responses=errors(404, 409))
async def delete_adapter(reference: str, services: ServicesDep, caller: CallerDep) -> None:
    """Delete one version, model:adapter@version, with its files; only its owner may."""
    await services.adapters.remove(caller, reference)
