"""The native API's datasets: upload, list, delete, and a look at what a model would learn from one."""

from fastapi import APIRouter, Depends, Request, Response

from mini_claude.data.records import Dataset
from mini_claude.services.identity import Caller
from mini_claude.services.services import Services
from mini_claude.training.doctor_report import DoctorReport
from mini_claude.web.deps import CallerDep, ServicesDep, caller_of
from mini_claude.web.schemas.datasets import UPLOAD_FORM, DatasetList, DatasetPublic, PreviewRequest
from mini_claude.web.streaming import unless_gone
from mini_claude.web.upload import UPLOAD_PATH, announced_bytes, receive_upload

router = APIRouter(prefix=UPLOAD_PATH, tags=["datasets"], dependencies=[Depends(caller_of)])


@router.post("", status_code=201, openapi_extra=UPLOAD_FORM)
async def upload_dataset(
    request: Request, response: Response, services: ServicesDep, caller: CallerDep
) -> DatasetPublic:
    """Upload a file of training data; its format is detected, and every broken row counted.

    The same content again under the same name answers 200 with what is there.
    """
    dataset, is_new = await _upload(request, services, caller)
    response.status_code = 201 if is_new else 200
    return DatasetPublic.of(dataset)


async def _upload(request: Request, services: Services, caller: Caller) -> tuple[Dataset, bool]:
    max_bytes = services.settings.max_dataset_bytes
    num_bytes = announced_bytes(request, max_bytes)
    async with services.datasets.receive(num_bytes) as incoming:
        form = await receive_upload(request, incoming.write, max_bytes)
        return await unless_gone(request, services.datasets.add(caller, incoming, form.file_name or "", form.name))


@router.get("")
async def list_datasets(services: ServicesDep, caller: CallerDep) -> DatasetList:
    """The caller's datasets by name."""
    return DatasetList(datasets=[DatasetPublic.of(dataset) for dataset in await services.datasets.list(caller)])


@router.get("/{name}")
async def get_dataset(name: str, services: ServicesDep, caller: CallerDep) -> DatasetPublic:
    """One dataset."""
    return DatasetPublic.of(await services.datasets.get(caller, name))


@router.delete("/{name}", status_code=204)
async def delete_dataset(name: str, services: ServicesDep, caller: CallerDep) -> None:
    """Delete a dataset; refused while a training job that has not ended uses it."""
    await services.datasets.delete(caller, name)


@router.post("/{name}/preview")
async def preview_dataset(
    name: str, body: PreviewRequest, request: Request, services: ServicesDep, caller: CallerDep
) -> DoctorReport:
    """What a job with this model would see: tokens, lengths, what is cut off, duplicates; and what it would cost."""
    return await unless_gone(request, services.datasets.preview(caller, name, body.model, body.examination()))
