"""Preferences as rows: whole, in pages, bounded and their owner's."""

from dataclasses import replace

import pytest

from mini_claude.data.database import Database
from mini_claude.data.preferences import PreferenceRepository
from mini_claude.data.records import Answer, Preference
from mini_claude.errors import Conflict, NotFound
from mini_claude.types import Message

ONE = Preference(
    id="1" * 32,
    owner="alice",
    messages=(Message("system", "Be brief."), Message("user", "hi")),
    chosen=Answer("smollm2-135m:bot@2", "hé", cut=False),
    rejected=Answer("smollm2-135m", "hello there", cut=True),
    blind=True,
    created_at=1.0,
)


@pytest.fixture
def preferences(database: Database) -> PreferenceRepository:
    return PreferenceRepository(database)


def test_they_come_back_whole_in_pages_newest_first(preferences: PreferenceRepository) -> None:
    stored = [replace(ONE, id=f"{n:032}", created_at=n // 2) for n in range(5)]  # some at the same time
    for preference in stored:
        preferences.add(preference, 10)
    newest_first = tuple(reversed(stored))
    assert preferences.list("alice", 10) == newest_first
    assert preferences.list("alice", 2) == newest_first[:2]
    assert preferences.list("alice", 2, newest_first[1].id) == newest_first[2:4]
    assert preferences.list("alice", 2, newest_first[4].id) == ()


def test_one_owner_has_so_many_and_others_their_own(preferences: PreferenceRepository) -> None:
    preferences.add(ONE, 1)
    with pytest.raises(Conflict) as caught:
        preferences.add(replace(ONE, id="2" * 32), 1)
    assert caught.value.code == "too_many_preferences"
    preferences.add(replace(ONE, id="3" * 32, owner="bob"), 1)
    preferences.remove("alice", ONE.id)
    preferences.add(replace(ONE, id="2" * 32), 1)


def test_another_owners_do_not_exist(preferences: PreferenceRepository) -> None:
    preferences.add(ONE, 1)
    assert preferences.list("bob", 10) == ()
    with pytest.raises(NotFound):
        preferences.list("bob", 10, ONE.id)
    with pytest.raises(NotFound):
        preferences.remove("bob", ONE.id)
    with pytest.raises(NotFound):
        preferences.remove("alice", "2" * 32)
    assert preferences.list("alice", 10) == (ONE,)
