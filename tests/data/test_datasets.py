"""Names of datasets: whose they are, what they lead to, and when one may go."""

import uuid
from dataclasses import asdict, replace

import pytest

from mini_claude.data.database import Database
from mini_claude.data.datasets import DatasetRepository
from mini_claude.data.records import Dataset
from mini_claude.data.tables import JobRow
from mini_claude.errors import Conflict, NotFound
from mini_claude.training.arguments import JobSpec
from mini_claude.training.examples import RowProblem

A, B = "a" * 32, "b" * 32
ONE = Dataset(
    name="one",
    owner=A,
    sha256="1" * 64,
    file_name="One.jsonl",
    container="jsonl",
    format="messages",
    num_bytes=100,
    num_rows=10,
    num_broken=2,
    problems=(RowProblem(3, 4, "it is empty"), RowProblem(5, None, "it is not UTF-8")),
    created_at=1.5,
)


@pytest.fixture
def datasets(database: Database) -> DatasetRepository:
    return DatasetRepository(database)


def add_job(database: Database, state: str, sha256: str, owner: str = A) -> None:
    spec = JobSpec("model", "one", sha256, "adapter")
    with database.write() as session:
        session.add(
            JobRow(
                id=uuid.uuid4().hex,
                owner=owner,
                state=state,
                spec=asdict(spec),
                dataset_sha256=sha256,
                body_sha256="",
                created_at=1.0,
                attempts=0,
                cancel_requested=False,
                progress={},
            )
        )


def test_what_was_added_is_found_and_listed_by_name(datasets: DatasetRepository) -> None:
    zero = replace(ONE, name="aaa", problems=())
    assert datasets.add(ONE) == (ONE, True)
    assert datasets.add(zero) == (zero, True)
    assert datasets.find(A, "one") == ONE
    assert datasets.list(A) == (zero, ONE)


def test_the_same_content_under_the_same_name_is_what_was_there(datasets: DatasetRepository) -> None:
    datasets.add(ONE)
    assert datasets.add(replace(ONE, created_at=9.0, file_name="other")) == (ONE, False)


@pytest.mark.parametrize("other", [replace(ONE, sha256="2" * 64), replace(ONE, owner=B)])
def test_a_taken_name_is_a_conflict(datasets: DatasetRepository, other: Dataset) -> None:
    datasets.add(ONE)
    with pytest.raises(Conflict) as caught:
        datasets.add(other)
    assert caught.value.code == "dataset_exists"
    assert datasets.find(A, "one") == ONE


def test_what_belongs_to_another_does_not_exist(datasets: DatasetRepository) -> None:
    datasets.add(ONE)
    assert datasets.list(B) == ()
    for use in (datasets.find, datasets.remove):
        for owner, name in ((B, "one"), (A, "two"), (A, ""), (A, "one\0")):
            with pytest.raises(NotFound):
                use(owner, name)
    assert datasets.find(A, "one") == ONE


def test_the_content_goes_with_its_last_name(datasets: DatasetRepository) -> None:
    datasets.add(ONE)
    datasets.add(replace(ONE, name="two", owner=B))
    datasets.add(replace(ONE, name="three", sha256="3" * 64))
    assert datasets.remove(A, "one") is None
    assert datasets.remove(B, "two") == ONE.sha256
    assert [each.name for each in datasets.list(A)] == ["three"]


@pytest.mark.parametrize("state", ["pending", "running", "interrupted"])
def test_a_dataset_in_use_cannot_vanish(database: Database, datasets: DatasetRepository, state: str) -> None:
    datasets.add(ONE)
    add_job(database, state, ONE.sha256)
    with pytest.raises(Conflict) as caught:
        datasets.remove(A, "one")
    assert caught.value.code == "dataset_in_use"
    assert datasets.find(A, "one") == ONE


@pytest.mark.parametrize("state", ["completed", "failed", "cancelled"])
def test_a_job_that_has_ended_keeps_nothing(database: Database, datasets: DatasetRepository, state: str) -> None:
    datasets.add(ONE)
    add_job(database, state, ONE.sha256)
    add_job(database, "running", "2" * 64)
    assert datasets.remove(A, "one") == ONE.sha256


def test_the_job_of_another_keeps_the_content_and_not_my_name_for_it(
    database: Database, datasets: DatasetRepository
) -> None:
    datasets.add(ONE)
    add_job(database, "running", ONE.sha256, owner=B)
    with pytest.raises(Conflict):  # it would be the last name
        datasets.remove(A, "one")
    datasets.add(replace(ONE, name="two", owner=B))
    assert datasets.remove(A, "one") is None
    with pytest.raises(Conflict):
        datasets.remove(B, "two")


def test_a_content_counts_once_for_the_quota(datasets: DatasetRepository) -> None:
    assert datasets.stored_bytes(besides="") == 0
    datasets.add(ONE)
    datasets.add(replace(ONE, name="two", owner=B))
    datasets.add(replace(ONE, name="three", sha256="3" * 64, num_bytes=7))
    assert datasets.stored_bytes(besides="") == 107
    assert datasets.stored_bytes(besides=ONE.sha256) == 7
