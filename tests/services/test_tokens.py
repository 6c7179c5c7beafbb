"""Which tokens count: only ours, whole, of one algorithm, in their time, of a user who may still sign in."""

import base64
import json
import os
import stat
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from sqlalchemy import text

from mini_claude.data.records import User
from mini_claude.data.token_secret import token_secret
from mini_claude.errors import StorageError, Unauthorized
from mini_claude.services import tokens
from mini_claude.services.tokens import TokenSigner
from mini_claude.utils.config import Settings

from .conftest import OpenWorker, Worker

PASSWORD = "correct horse battery staple"


@pytest.fixture
async def ada(worker: Worker) -> User:
    return await worker.services.users.create("ada", PASSWORD)


def secret_of(worker: Worker) -> bytes:
    return token_secret(worker.services.settings.data_dir)


def claims(user: User, **changes: Any) -> dict[str, Any]:
    """What our own tokens say, with changes; None leaves a claim out."""
    now = int(time.time())
    said = {
        "iss": tokens.ISSUER,
        "aud": tokens.AUDIENCE,
        "sub": user.id,
        "jti": "1" * 32,
        "gen": user.generation,
        "iat": now,
        "exp": now + 60,
    } | changes
    return {name: value for name, value in said.items() if value is not None}


async def refused(worker: Worker, token: str) -> str:
    """The words in which the token is refused."""
    with pytest.raises(Unauthorized) as caught:
        await worker.services.credentials.caller(token)
    return caught.value.message


async def test_a_token_of_ours_is_the_user_with_role_and_limits(worker: Worker, ada: User) -> None:
    made = await worker.services.logins.login("ada", PASSWORD, None)
    caller = await worker.services.credentials.caller(made.text)
    assert (caller.owner, caller.role, caller.key_id, caller.token) == (ada.id, "admin", None, made.token)
    by_hand = jwt.encode(claims(ada), secret_of(worker), "HS256")
    assert (await worker.services.credentials.caller(by_hand)).owner == ada.id  # so that what follows tests its changes


@pytest.mark.parametrize(
    "change",
    [
        {"exp": None},
        {"iat": None},
        {"iss": None},
        {"aud": None},
        {"jti": None},
        {"sub": None},
        {"gen": None},
        {"exp": 1},
        {"exp": 1_700_000_000},
        {"exp": "tomorrow"},
        {"iat": 4_000_000_000},
        {"iss": "somebody-else"},
        {"iss": ["mini-claude"]},
        {"aud": "another-api"},
        {"aud": []},
        {"sub": "f" * 32},
        {"sub": 7},
        {"jti": 7},
        {"gen": 1},
        {"gen": "0"},
        {"nbf": 4_000_000_000},
    ],
    ids=str,
)
async def test_a_claim_that_is_missing_or_wrong_makes_a_token_nobodys(
    worker: Worker, ada: User, change: dict[str, Any]
) -> None:
    token = jwt.encode(claims(ada) | {}, secret_of(worker), "HS256")
    await worker.services.credentials.caller(token)
    parts = [json.dumps({"alg": "HS256", "typ": "JWT"}).encode(), json.dumps(claims(ada, **change)).encode()]
    signed = b".".join(base64url(part) for part in parts)  # by hand: PyJWT itself refuses to make some of them
    signature = jwt.get_algorithm_by_name("HS256").sign(signed, secret_of(worker))
    assert await refused(worker, (signed + b"." + base64url(signature)).decode()) == tokens.UNAUTHORIZED


def base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def unsigned(user: User, _: bytes) -> str:
    return jwt.encode(claims(user), None, "none")


def unsigned_in_capitals(user: User, secret: bytes) -> str:
    header = base64url(b'{"alg":"NONE","typ":"JWT"}')
    return b".".join((header, unsigned(user, secret).encode().split(b".")[1], b"")).decode()


def without_its_signature(user: User, secret: bytes) -> str:
    return jwt.encode(claims(user), secret, "HS256").rpartition(".")[0] + "."


def with_another_hash(user: User, secret: bytes) -> str:
    return jwt.encode(claims(user), secret, "HS512")


def that_names_another_algorithm(user: User, secret: bytes) -> str:
    header = base64url(b'{"alg":"RS256","typ":"JWT"}')
    signed = header + b"." + jwt.encode(claims(user), secret, "HS256").encode().split(b".")[1]
    return (signed + b"." + base64url(jwt.get_algorithm_by_name("HS256").sign(signed, secret))).decode()


def with_another_secret(user: User, secret: bytes) -> str:
    return jwt.encode(claims(user), os.urandom(len(secret)), "HS256")


def with_an_empty_secret(user: User, _: bytes) -> str:
    signed = b".".join((base64url(b'{"alg":"HS256"}'), base64url(json.dumps(claims(user)).encode())))
    return (signed + b"." + base64url(jwt.get_algorithm_by_name("HS256").sign(signed, b""))).decode()


def that_brings_its_own_key(user: User, _: bytes) -> str:
    own = os.urandom(32)
    jwk = {"kty": "oct", "k": base64url(own).decode()}
    return jwt.encode(
        claims(user), own, "HS256", headers={"jwk": jwk, "kid": "../../dev/null", "jku": "http://127.0.0.1/"}
    )


def promoted(user: User, secret: bytes) -> str:
    header, _, signature = jwt.encode(claims(user), secret, "HS256").split(".")
    return ".".join((header, base64url(json.dumps(claims(user, exp=10**10)).encode()).decode(), signature))


@pytest.mark.parametrize(
    "forged",
    [
        unsigned,
        unsigned_in_capitals,
        without_its_signature,
        with_another_hash,
        that_names_another_algorithm,
        with_another_secret,
        with_an_empty_secret,
        that_brings_its_own_key,
        promoted,
        lambda *_: "eyJ",
        lambda *_: "eyJ.eyJ.eyJ",
        lambda *_: "eyJ\ud800.\u00e9.x",
        lambda user, secret: jwt.encode(claims(user), secret, "HS256") + "A" * 100_000,
        lambda user, secret: jwt.encode(claims(user, note="x" * 2000), secret, "HS256"),
    ],
)
async def test_a_forged_token_is_refused_in_the_words_for_an_expired_one(
    worker: Worker, ada: User, forged: Callable[[User, bytes], str]
) -> None:
    assert await refused(worker, forged(ada, secret_of(worker))) == tokens.UNAUTHORIZED


async def test_a_token_that_was_given_back_is_refused_by_every_worker(open_worker: OpenWorker) -> None:
    one, two = await open_worker(), await open_worker()
    await one.services.users.create("ada", PASSWORD)
    made, other = [await one.services.logins.login("ada", PASSWORD, None) for _ in range(2)]
    assert await two.services.credentials.needed()
    await two.services.credentials.caller(made.text)  # of one secret
    await one.services.logins.logout(made.token)
    await one.services.logins.logout(made.token)  # twice is as good as once
    assert await refused(two, made.text) == tokens.UNAUTHORIZED
    with pytest.raises(Unauthorized):
        await two.services.logins.require_active(made.token)
    await two.services.credentials.caller(other.text)


async def test_rows_of_revoked_tokens_go_when_the_tokens_would_have_ended(worker: Worker, ada: User) -> None:
    def rows() -> int:
        with worker.services.database.read() as session:
            return int(session.scalar(text("SELECT count(*) FROM revoked_tokens")) or 0)

    made = await worker.services.logins.login("ada", PASSWORD, None)
    await worker.services.logins.logout(made.token)
    assert rows() == 1
    with worker.services.database.write() as session:
        session.execute(text("UPDATE revoked_tokens SET expires_at = 1.0"))
    await worker.services.logins.logout((await worker.services.logins.login("ada", PASSWORD, None)).token)
    assert rows() == 1


async def end_by_disabling(worker: Worker, user: User) -> None:
    await worker.services.users.disable(user.id)


async def end_by_disabling_for_a_moment(worker: Worker, user: User) -> None:
    await worker.services.users.disable(user.id)
    await worker.services.users.enable(user.id)


async def end_by_a_new_password(worker: Worker, user: User) -> None:
    await worker.services.users.set_password(user.id, "another good password")


async def end_in_the_table(worker: Worker, user: User) -> None:
    with worker.services.database.write() as session:
        session.execute(text("UPDATE users SET disabled_at = 1.0 WHERE id = :id"), {"id": user.id})


async def end_by_removing(worker: Worker, user: User) -> None:
    await worker.services.users.remove(user.id)


@pytest.mark.parametrize(
    "end",
    [end_by_disabling, end_by_disabling_for_a_moment, end_in_the_table, end_by_a_new_password, end_by_removing],
)
async def test_what_ends_a_users_tokens_ends_all_of_them_at_once(
    worker: Worker, ada: User, end: Callable[[Worker, User], Any]
) -> None:
    eve = await worker.services.users.create("eve", PASSWORD)
    made = [await worker.services.logins.login("ada", PASSWORD, None) for _ in range(2)]
    hers = await worker.services.logins.login("eve", PASSWORD, None)
    await end(worker, ada)
    for each in made:
        assert await refused(worker, each.text) == tokens.UNAUTHORIZED
        with pytest.raises(Unauthorized):
            await worker.services.logins.require_active(each.token)
    assert (await worker.services.credentials.caller(hers.text)).owner == eve.id


async def test_a_token_that_expires_meanwhile_is_no_longer_active(
    worker: Worker, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await worker.services.logins.login("ada", PASSWORD, None)
    await worker.services.logins.require_active(made.token)
    monkeypatch.setattr(time, "time", lambda: made.token.expires_at)
    with pytest.raises(Unauthorized):
        await worker.services.logins.require_active(made.token)


def test_the_secret_is_long_private_and_made_once(settings: Settings) -> None:
    secret = token_secret(settings.data_dir)
    assert len(secret) >= 32
    assert token_secret(settings.data_dir) == secret
    assert stat.S_IMODE((settings.data_dir / "token_secret").stat().st_mode) == 0o600
    assert sorted(path.name for path in settings.data_dir.iterdir()) == ["token_secret", "token_secret.lock"]


def test_a_secret_that_was_cut_is_no_secret(settings: Settings) -> None:
    settings.data_dir.mkdir(parents=True)
    (settings.data_dir / "token_secret").write_bytes(b"x" * 31)
    with pytest.raises(StorageError, match="32 bytes"):
        token_secret(settings.data_dir)


def test_a_token_lasts_as_long_as_the_setting_says() -> None:
    token, _ = TokenSigner(b"s" * 32, 90.0).make("1" * 32, 0)
    assert time.time() + 88 < token.expires_at <= time.time() + 90
