"""The life of an API key."""

import dataclasses
import hashlib
import hmac
import math
import time

import pytest
from sqlalchemy import text

from mini_claude.data.records import Limits
from mini_claude.errors import InvalidRequest, NotFound, Unauthorized

from .conftest import OpenWorker, Worker


async def test_a_key_is_shown_once_and_only_its_hash_is_stored(worker: Worker) -> None:
    key, plain = await worker.services.keys.create("my laptop")
    assert plain.startswith("mc-")
    assert len(plain) == 46
    with worker.services.database.read() as session:
        row = dict(session.execute(text("SELECT * FROM api_keys")).mappings().one())
    assert row["sha256"] == hashlib.sha256(plain.encode()).hexdigest()
    assert plain not in str(row)
    assert plain not in str(dataclasses.asdict(key))
    assert await worker.services.keys.authenticate(plain) == key
    assert await worker.services.keys.list() == (key,)


async def test_a_revoked_key_is_refused_by_every_worker_and_keeps_the_server_closed(open_worker: OpenWorker) -> None:
    one, two = await open_worker(), await open_worker()
    assert not await two.services.credentials.needed()
    key, plain = await one.services.keys.create("only key")
    assert await two.services.credentials.needed()
    await two.services.keys.authenticate(plain)
    await one.services.keys.revoke(key.id)
    with pytest.raises(Unauthorized):
        await two.services.keys.authenticate(plain)
    for worker in (one, two, await open_worker()):
        assert await worker.services.credentials.needed()
    revoked = (await one.services.keys.list())[0].revoked_at
    assert revoked is not None
    await one.services.keys.revoke(key.id)
    assert (await one.services.keys.list())[0].revoked_at == revoked
    with pytest.raises(NotFound):
        await one.services.keys.revoke("no such key")


async def test_any_other_text_is_unauthorized_in_the_same_words(worker: Worker) -> None:
    _, plain = await worker.services.keys.create("laptop")
    other = "A" if plain[-1] != "A" else "B"
    answers = set()
    for wrong in ("", "mc-", plain[:-1], plain + "x", plain[:-1] + other, plain + "\n", "\ud800", "x" * 100_000):
        with pytest.raises(Unauthorized) as caught:
            await worker.services.keys.authenticate(wrong)
        answers.add(caught.value.message)
    assert len(answers) == 1


async def test_keys_are_compared_in_constant_time(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []

    def record(left: str, right: str) -> bool:
        compared.append((left, right))
        return left == right

    monkeypatch.setattr(hmac, "compare_digest", record)
    _, plain = await worker.services.keys.create("laptop")
    await worker.services.keys.authenticate(plain)
    digest = hashlib.sha256(plain.encode()).hexdigest()
    assert compared == [(digest, digest)]


async def expire(worker: Worker, key_id: str) -> None:
    """Let the key's time have come."""
    with worker.services.database.write() as session:
        session.execute(text("UPDATE api_keys SET expires_at = 1.0 WHERE id = :id"), {"id": key_id})


async def test_the_first_key_is_an_admins_and_the_next_ones_users_unless_said_otherwise(worker: Worker) -> None:
    keys = worker.services.keys
    made = [(await keys.create("key", role))[0].role for role in (None, None, "admin", "user")]
    assert made == ["admin", "user", "admin", "user"]


async def test_where_no_admins_key_is_left_the_next_one_is_an_admins(worker: Worker) -> None:
    keys = worker.services.keys
    await keys.create("guest", "user")
    assert not await keys.has_admin()
    first, _ = await keys.create("first")
    await keys.revoke(first.id)
    second, _ = await keys.create("second")
    await expire(worker, second.id)
    third, _ = await keys.create("third")
    assert (first.role, second.role, third.role) == ("admin", "admin", "admin")
    assert await keys.has_admin()


async def test_an_expired_key_is_refused_like_an_unknown_one_and_keeps_the_server_closed(worker: Worker) -> None:
    keys = worker.services.keys
    key, plain = await keys.create("guest", "user", time.time() + 3600)
    assert await keys.authenticate(plain) == key
    await keys.require_active(key.id)
    await expire(worker, key.id)
    answers = set()
    for wrong in (plain, "mc-" + "A" * 43):
        with pytest.raises(Unauthorized) as caught:
            await keys.authenticate(wrong)
        answers.add((caught.value.message, caught.value.code, caught.value.param))
    assert len(answers) == 1
    with pytest.raises(Unauthorized):
        await keys.require_active(key.id)
    assert await worker.services.credentials.needed()


@pytest.mark.parametrize("expires_at", [0.0, 1.0, -1.0, math.inf, math.nan, 1e18])
async def test_a_key_ends_in_the_future_and_not_beyond_all_calendars(worker: Worker, expires_at: float) -> None:
    with pytest.raises(InvalidRequest, match="100 years") as caught:
        await worker.services.keys.create("laptop", "user", expires_at)
    assert caught.value.param == "expires_at"
    assert not await worker.services.credentials.needed()


@pytest.mark.parametrize("name", ["", "  ", "x" * 201, "bell\a"])
async def test_a_key_needs_a_name_that_can_be_listed(worker: Worker, name: str) -> None:
    with pytest.raises(InvalidRequest):
        await worker.services.keys.create(name)
    assert not await worker.services.credentials.needed()


@pytest.mark.parametrize("value", [-1, 10**13])
async def test_a_limit_that_cannot_be_one_makes_no_key_and_is_named(worker: Worker, value: int) -> None:
    with pytest.raises(InvalidRequest, match="tokens_per_day") as caught:
        await worker.services.keys.create("guest", limits=Limits(tokens_per_day=value))
    assert caught.value.param == "tokens_per_day"
    assert await worker.services.keys.list() == ()
