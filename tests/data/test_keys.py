"""Rows of API keys, and those of servers from before keys had roles."""

import asyncio
import hashlib
from dataclasses import replace

import pytest
from sqlalchemy import inspect, text
from sqlalchemy.exc import IntegrityError

from mini_claude.data.database import Database
from mini_claude.data.door import DoorRepository
from mini_claude.data.keys import KeyRepository
from mini_claude.data.records import ApiKey, Limits
from mini_claude.errors import NotFound, Unauthorized
from mini_claude.services.keys import KeyService

from .migrating import migrate_to

KEY = ApiKey("1" * 32, "laptop", "mc-abcdef", 1.0, "user", 20.0)
PLAIN = "mc-" + "A" * 43
REVOKED = "mc-" + "B" * 43
OLD_COLUMNS = "id, name, prefix, sha256, created_at, revoked_at"


def test_a_key_is_found_as_it_was_stored(database: Database) -> None:
    repository = KeyRepository(database)
    repository.add(KEY, "f" * 64)
    assert repository.get(KEY.id) == KEY
    assert repository.find_by_prefix(KEY.prefix) == ((KEY, "f" * 64),)
    with pytest.raises(NotFound, match="keys list"):
        repository.get("nothing")


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"expires_at": None}, "active"),
        ({"expires_at": 10.1}, "active"),
        ({"expires_at": 10.0}, "expired"),
        ({"expires_at": 9.0}, "expired"),
        ({"expires_at": None, "revoked_at": 5.0}, "revoked"),
        ({"expires_at": 9.0, "revoked_at": 5.0}, "revoked"),
    ],
)
def test_a_key_is_active_until_it_is_revoked_or_its_time_has_come(changes: dict[str, float], state: str) -> None:
    assert replace(KEY, **changes).state(10.0) == state  # type: ignore[arg-type]


def test_keys_from_before_roles_stay_what_they_were_and_can_do_everything(any_url: str) -> None:
    database = Database(any_url)
    migrate_to(database, "0005")
    with database.write() as session:
        for number, (plain, revoked_at) in enumerate(((PLAIN, None), (REVOKED, 3.0)), 1):
            values = {"id": str(number) * 32, "prefix": plain[:9], "revoked_at": revoked_at}
            session.execute(
                text(f"INSERT INTO api_keys ({OLD_COLUMNS}) VALUES (:id, 'old', :prefix, :sha256, 2.5, :revoked_at)"),
                values | {"sha256": hashlib.sha256(plain.encode()).hexdigest()},
            )
    database.migrate()
    living = ApiKey("1" * 32, "old", PLAIN[:9], 2.5, "admin")
    assert KeyRepository(database).list() == (living, ApiKey("2" * 32, "old", REVOKED[:9], 2.5, "admin", None, 3.0))
    service = KeyService(KeyRepository(database), DoorRepository(database))
    assert asyncio.run(service.authenticate(PLAIN)) == living
    with pytest.raises(Unauthorized):
        asyncio.run(service.authenticate(REVOKED))
    with database.read() as session:
        indexes = inspect(session.connection()).get_indexes("api_keys")
    assert [index["column_names"] for index in indexes] == [["prefix"]]
    database.close()


def test_keys_from_before_limits_have_none_of_their_own(any_url: str) -> None:
    database = Database(any_url)
    migrate_to(database, "0006")
    values = f"'{KEY.id}', '{KEY.name}', '{KEY.prefix}', 'f', {KEY.created_at}, NULL, '{KEY.role}', {KEY.expires_at}"
    with database.write() as session:
        session.execute(text(f"INSERT INTO api_keys ({OLD_COLUMNS}, role, expires_at) VALUES ({values})"))
    database.migrate()
    assert KeyRepository(database).list() == (KEY,)
    assert KEY.limits == Limits(None, None, None, None, None)
    database.close()


def test_limits_are_kept_each_in_its_own_column(database: Database) -> None:
    limited = replace(KEY, limits=Limits(1, 2, 3, 10**12, 0))
    KeyRepository(database).add(limited, "f" * 64)
    assert KeyRepository(database).get(KEY.id) == limited


def test_no_key_becomes_an_admins_because_nobody_said_whose_it_is(database: Database) -> None:
    with pytest.raises(IntegrityError), database.write() as session:
        session.execute(text(f"INSERT INTO api_keys ({OLD_COLUMNS}) VALUES ('1', 'n', 'p', 'h', 1.0, NULL)"))
