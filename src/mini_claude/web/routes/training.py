"""The native API's training jobs, and the WebSocket on which one is watched."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Response

from mini_claude.web.deps import CallerDep, ServicesDep, caller_of
from mini_claude.web.schemas.errors import errors
from mini_claude.web.schemas.training import EventPublic, JobList, JobProgress, JobPublic, JobRequest

router = APIRouter(prefix="/api/v1/training", tags=["training"], dependencies=[Depends(caller_of)])

IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=128)]
After = Annotated[int, Query(ge=0, le=2**31, description="Only events with a higher number.")]


@router.post("/jobs", status_code=201, responses=errors(404, 409))
async def create_job(
    body: JobRequest,
    services: ServicesDep,
    caller: CallerDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> JobPublic:
    """Queue a job. The same Idempotency-Key and body again give the same job, with status 200."""
    job, is_new = await services.training.submit(
        caller,
        model=body.model_name,
        dataset=body.dataset_path,
        adapter=body.adapter_name,
        lora=body.lora_config.settings(),
        arguments=body.training_args.arguments(),
        idempotency_key=idempotency_key,
    )
    response.status_code = 201 if is_new else 200
    return JobPublic.of(job)


@router.get("/jobs")
async def list_jobs(
    services: ServicesDep, caller: CallerDep, limit: Annotated[int, Query(ge=1, le=200)] = 50
) -> JobList:
    """The caller's jobs, newest first."""
    return JobList(jobs=[JobPublic.of(job) for job in await services.training.list(caller, limit)])


@router.get("/jobs/{job_id}", responses=errors(404))
async def get_job(job_id: str, services: ServicesDep, caller: CallerDep) -> JobPublic:
    """One job."""
    return JobPublic.of(await services.training.get(caller, job_id))


@router.delete("/jobs/{job_id}", responses=errors(404, 409))
async def cancel_job(job_id: str, services: ServicesDep, caller: CallerDep) -> JobPublic:
    """Cancel a job; a running one ends after its step. Its events and checkpoints stay."""
    return JobPublic.of(await services.training.cancel(caller, job_id))


@router.post("/jobs/{job_id}/resume", responses=errors(404, 409))
async def resume_job(job_id: str, services: ServicesDep, caller: CallerDep) -> JobPublic:
    """Let a failed or cancelled job go on from its last checkpoint."""
    return JobPublic.of(await services.training.resume(caller, job_id))


@router.get("/jobs/{job_id}/progress", responses=errors(404))
async def get_progress(
    job_id: str,
    services: ServicesDep,
    caller: CallerDep,
    after: After = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> JobProgress:
    """Where the job stands and its events after number `after`."""
    job = await services.training.get(caller, job_id)
    events = await services.training.events(caller, job_id, after, limit)
    return JobProgress(job=JobPublic.of(job), events=[EventPublic.of(event) for event in events])
