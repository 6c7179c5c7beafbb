"""The native API's datasets: upload, list, delete, and a look at what a model would learn from one."""

from fastapi import APIRouter, Depends, Request, Response

from mini_claude.data.records import Dataset
from mini_claude.services.identity import Caller
from mini_claude.services.services import Services
from mini_claude.training.doctor_report import DoctorReport
from mini_claude.web.deps import CallerDep, ServicesDep, caller_of
from mini_claude.web.schemas.datasets import UPLOAD_FORM, DatasetList, DatasetPublic, PreviewRequest
from mini_claude.web.schemas.errors import errors
from mini_claude.web.streaming import unless_gone
from mini_claude.web.upload import DATASETS_PATH, FormShape, announced_bytes, receive_upload

UPLOAD = FormShape(
    ("file",),
    ("name",),
    "max_dataset_bytes",
    "Send multipart/form-data with the file as `file` and, if you like, the dataset's `name`.",
)

router = APIRouter(prefix=DATASETS_PATH, tags=["datasets"], dependencies=[Depends(caller_of)])


@router.post(
    "",
    status_code=201,
    openapi_extra=UPLOAD_FORM,
    responses=errors(409) | {200: {"description": "It was there already.", "model": DatasetPublic}},
)
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
    num_bytes = announced_bytes(request, UPLOAD, max_bytes)
    async with services.datasets.receive(num_bytes) as incoming:
        form = await receive_upload(request, UPLOAD, lambda _, data: incoming.write(data), max_bytes)
        adding = services.datasets.add(caller, incoming, form.file_names["file"], form.field("name"))
        return await unless_gone(request, adding)


@router.get("")
async def list_datasets(services: ServicesDep, caller: CallerDep) -> DatasetList:
    """The caller's datasets by name."""
    return DatasetList(datasets=[DatasetPublic.of(dataset) for dataset in await services.datasets.list(caller)])


@router.get("/{name}", responses=errors(404))
async def get_dataset(name: str, services: ServicesDep, caller: CallerDep) -> DatasetPublic:
    """One dataset."""
    return DatasetPublic.of(await services.datasets.get(caller, name))


@router.delete("/{name}", status_code=204, responses=errors(404, 409))
async def delete_dataset(name: str, services: ServicesDep, caller: CallerDep) -> None:
    """Delete a dataset; refused while a training job that has not ended uses it."""
    await services.datasets.delete(caller, name)


@router.post("/{name}/preview", responses=errors(404, 409))
async def preview_dataset(
    name: str, body: PreviewRequest, request: Request, services: ServicesDep, caller: CallerDep
) -> DoctorReport:
    """What a job with this model would see: tokens, lengths, what is cut off, duplicates; and what it would cost."""
    return await unless_gone(request, services.datasets.preview(caller, name, body.model, body.examination()))
