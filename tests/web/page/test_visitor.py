"""Who a visitor of the page is, and that no event forgets to ask where only some may."""

import ast
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest

from mini_claude.data.records import Limits
from mini_claude.errors import Forbidden, Unauthorized
from mini_claude.services.identity import LOCAL, Caller
from mini_claude.web.page import visitor as module
from mini_claude.web.page.visitor import admin_visitor, visitor
from mini_claude.web.page_line import KEY_HEADER, LIMITS_HEADER, OWNER_HEADER, ROLE_HEADER

from .conftest import SOMEBODY_ELSE

# What changes or tells the whole server's state: calls as they end in the source.
FOR_ADMINS = ("models.load", "models.unload", "models.set_default", "runtime.metrics", "recent_errors")


def functions() -> Iterator[tuple[str, ast.AST]]:
    for path in Path(str(module.__file__)).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef):
                yield f"{path.stem}.{node.name}", node


def names_in(node: ast.AST) -> set[str]:
    return {ast.unparse(each) for each in ast.walk(node) if isinstance(each, ast.Attribute | ast.Name)}


def test_the_local_visitor_is_an_admin_and_one_with_a_key_is_what_that_says(
    visit: gr.Request, foreign_visit: gr.Request
) -> None:
    assert visitor(visit) == admin_visitor(visit) == LOCAL
    assert visitor(foreign_visit) == Caller(SOMEBODY_ELSE, SOMEBODY_ELSE, "user")
    with pytest.raises(Forbidden, match="--role admin") as caught:
        admin_visitor(foreign_visit)
    assert caught.value.code == "admin_only"


@pytest.mark.parametrize("role", [None, "", "ADMIN", "root", "admin, user"])
def test_who_is_not_said_to_be_an_admin_is_none(role: str | None) -> None:
    headers = {OWNER_HEADER: "a", KEY_HEADER: "a"} | ({} if role is None else {ROLE_HEADER: role})
    assert not visitor(gr.Request(headers=headers)).is_admin


def test_the_worker_tells_the_limits_of_the_key() -> None:
    headers = {OWNER_HEADER: "a", KEY_HEADER: "a", LIMITS_HEADER: '{"requests_per_minute": 3, "tokens_per_day": null}'}
    assert visitor(gr.Request(headers=headers)).limits == Limits(requests_per_minute=3)


def test_who_came_through_no_worker_is_nobody() -> None:
    for ask in (visitor, admin_visitor):
        with pytest.raises(Unauthorized):
            ask(gr.Request(headers={ROLE_HEADER: "admin"}))


def test_every_event_that_manages_the_server_asks_whether_an_admin_wants_it() -> None:
    found = {
        name: names
        for name, names in ((name, names_in(node)) for name, node in functions())
        if any(each.endswith(FOR_ADMINS) for each in names)
    }
    assert {"models._load", "default_panel._choose", "train._serve", "system._look"} <= found.keys()
    careless = [name for name, names in found.items() if not {"admin_visitor", "caller.is_admin"} & names]
    assert careless == []
