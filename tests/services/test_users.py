"""Users and their passwords: what is stored, what may be one, and that nobody learns who exists."""

import statistics
import time

import pytest
from argon2 import extract_parameters
from sqlalchemy import text

from mini_claude.errors import Conflict, InvalidRequest, Unauthorized
from mini_claude.services.passwords import _HASHER, NOBODYS_HASH

from .conftest import Worker

PASSWORD = "correct horse battery staple"


async def test_only_the_hash_of_a_password_is_stored(worker: Worker) -> None:
    await worker.services.users.create("ada", PASSWORD)
    with worker.services.database.read() as session:
        row = dict(session.execute(text("SELECT * FROM users")).mappings().one())
    assert row["password_hash"].startswith("$argon2id$")
    assert PASSWORD not in str(row)


async def test_the_first_user_is_an_admin_unless_somebody_is(worker: Worker) -> None:
    users, keys = worker.services.users, worker.services.keys
    first = await users.create("first", PASSWORD)
    second = await users.create("second", PASSWORD)
    assert (first.role, second.role) == ("admin", "user")
    assert (await keys.create("key"))[0].role == "user"  # keys and users are asked together
    await users.disable(first.id)
    assert not await keys.has_admin()
    assert (await users.create("third", PASSWORD)).role == "admin"
    await keys.create("key", "admin")
    assert (await users.create("fourth", PASSWORD)).role == "user"


async def test_a_name_is_one_whatever_its_case(worker: Worker) -> None:
    await worker.services.users.create("Ada", PASSWORD)
    with pytest.raises(Conflict):
        await worker.services.users.create("ADA ", PASSWORD)
    assert (await worker.services.users.check_password("aDa", PASSWORD)).name == "ada"


@pytest.mark.parametrize("wrong", ["", PASSWORD + " ", PASSWORD.upper(), PASSWORD[:-1], "\x00", "\ud800", "x" * 5000])
async def test_any_other_password_is_refused(worker: Worker, wrong: str) -> None:
    await worker.services.users.create("ada", PASSWORD)
    with pytest.raises(Unauthorized):
        await worker.services.users.check_password("ada", wrong)


async def test_one_letter_may_be_spelled_in_two_ways(worker: Worker) -> None:
    await worker.services.users.create("ada", "crème brûlée!")
    await worker.services.users.check_password("ada", "cre\u0300me bru\u0302le\u0301e!")


@pytest.mark.parametrize(
    ("password", "good"), [("x" * 11, False), ("x" * 12, True), ("x" * 128, True), ("x" * 129, False)]
)
async def test_a_password_has_12_to_128_characters(worker: Worker, password: str, good: bool) -> None:
    if good:
        await worker.services.users.create("ada", password)
        return
    with pytest.raises(InvalidRequest, match="12 to 128") as caught:
        await worker.services.users.create("ada", password)
    assert caught.value.param == "password"
    assert not await worker.services.credentials.needed()


async def test_who_does_not_exist_is_refused_after_the_same_work(worker: Worker) -> None:
    await worker.services.users.create("ada", PASSWORD)
    assert extract_parameters(NOBODYS_HASH) == extract_parameters(_HASHER.hash("x"))

    async def seconds(name: str) -> float:
        started = time.perf_counter()
        with pytest.raises(Unauthorized):
            await worker.services.users.check_password(name, "wrong")
        return time.perf_counter() - started

    taken = {name: statistics.median([await seconds(name) for _ in range(5)]) for name in ("ada", "nobody")}
    assert 1 / 3 < taken["nobody"] / taken["ada"] < 3  # without a hash to compare it would be a hundredth
