"""Callers and their roles."""

import pytest

from mini_claude.errors import Forbidden
from mini_claude.services.identity import LOCAL, Caller, require_admin

from .conftest import ALICE


def test_the_local_caller_is_an_admin_and_somebody_of_whom_nothing_is_said_is_none() -> None:
    assert require_admin(LOCAL) == LOCAL
    assert require_admin(admin := Caller("c" * 32, "c" * 32, "admin")) == admin
    assert not ALICE.is_admin


@pytest.mark.parametrize("role", ["user", "root", "", "Admin"])
def test_who_is_no_admin_is_told_how_to_become_one(role: str) -> None:
    with pytest.raises(Forbidden, match="keys create NAME --role admin") as caught:
        require_admin(Caller("c" * 32, "c" * 32, role))  # type: ignore[arg-type]
    assert caught.value.code == "admin_only"
