"""A reply taken apart, for people who want to see how it came about."""

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from mini_claude.services.identity import Caller
from mini_claude.services.services import Services
from mini_claude.services.xray import Xray
from mini_claude.web.deps import CallerDep, ServicesDep, caller_of
from mini_claude.web.limit_headers import LIMIT_RESPONSES, limit_headers
from mini_claude.web.schemas.errors import errors
from mini_claude.web.schemas.xray import XrayRequest
from mini_claude.web.streaming import unless_gone

router = APIRouter(prefix="/api/v1/xray", tags=["xray"], dependencies=[Depends(caller_of)])


@router.post("", responses=LIMIT_RESPONSES | errors(404, 409))
async def create_xray(
    body: XrayRequest, request: Request, response: Response, services: ServicesDep, caller: CallerDep
) -> Xray:
    """The rendered prompt, and of every token its candidates, before and after each sampling step, and its times."""
    xray = await unless_gone(request, _xray(body, services, caller))
    response.headers.update(await limit_headers(services, caller))
    return xray


async def _xray(body: XrayRequest, services: Services, caller: Caller) -> Xray:
    params = body.sampling_params()
    if body.reply_id is None:
        return await services.xray.of_messages(
            caller,
            body.model,
            body.to_messages(),
            params,
            candidates=body.candidates,
            prefix_token_ids=body.prefix_token_ids or (),
        )
    return await services.xray.of_reply(
        caller, body.reply_id, params, candidates=body.candidates, prefix_token_ids=body.prefix_token_ids
    )
