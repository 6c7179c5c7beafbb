"""The OpenAPI document against the application: what fits it, or just does not, gets an answer that it describes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings, strategies
from schemathesis import Case, GenerationMode, checks
from schemathesis.core.result import Ok

from mini_claude.web.api import create_app

from ..end_to_end.conftest import with_model
from .live import Live, live_server
from .sizes import REDUCED, Sizes, at_both_sizes

DOCUMENT: Final[dict[str, Any]] = create_app().openapi()
FOUND: Final = list(schemathesis.openapi.from_dict(DOCUMENT).get_all_operations())
OPERATIONS: Final = {each.ok().label: each.ok() for each in FOUND if isinstance(each, Ok)}
assert len(OPERATIONS) == len(FOUND)
STARTS_A_MODEL: Final = ("export", "verify", "preview")  # of what is known: tested with what they do
CHECKS: Final = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, smollm2_folder: Path) -> Iterator[Live]:
    with live_server(with_model(tmp_path_factory.mktemp("live"), smollm2_folder)) as live:
        yield live


@at_both_sizes
@pytest.mark.parametrize("label", OPERATIONS)
def test_whatever_is_asked_the_answer_is_one_that_is_described(live: Live, label: str, sizes: Sizes) -> None:
    operation = OPERATIONS[label]
    has_input = bool(operation.body or operation.query or operation.path_parameters or operation.headers)
    num_cases = sizes.cases if has_input else 1
    if "multipart/form-data" in operation.get_request_payload_content_types():
        num_cases = sizes.upload_cases
    good = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    bad = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)

    @settings(
        max_examples=num_cases,
        database=None,
        deadline=None,
        derandomize=sizes is REDUCED,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=good | bad if has_input else good, is_known=strategies.booleans())
    def ask(case: Case[Any], is_known: bool) -> None:
        if is_known and not operation.path.endswith(STARTS_A_MODEL):
            case.path_parameters.update({name: live.known.get(name, "rows") for name in case.path_parameters})
        response = case.call(base_url=live.url, headers={"authorization": f"Bearer {live.key}"}, timeout=60)
        case.validate_response(response, checks=CHECKS)

    ask()
