import threading

import pytest

from mini_claude.data.database import Database
from mini_claude.data.datasets import DatasetRepository
from mini_claude.data.jobs import MAX_ATTEMPTS, JobRepository
from mini_claude.data.records import Dataset, Job
from mini_claude.errors import Conflict, ErrorInfo, IdempotencyKeyReused, NotFound, TrainerOutdated
from mini_claude.training.arguments import JobSpec, LoraSettings, TrainingArguments

SPEC = JobSpec("tiny", "rows", "a" * 64, "bot", LoraSettings(r=4), TrainingArguments(max_steps=3))
ME = "me"


@pytest.fixture
def jobs(database: Database) -> JobRepository:
    return repository(database)


def repository(database: Database) -> JobRepository:
    """With the data that jobs need."""
    for owner in (ME, "other"):
        dataset = Dataset(f"rows-{owner}", owner, "a" * 64, "rows.jsonl", "jsonl", "messages", 10, 1, 0, (), 1.0)
        DatasetRepository(database).add(dataset)
    return JobRepository(database)


def submit(jobs: JobRepository, key: str | None = None, body: str = "b") -> Job:
    return jobs.submit(ME, SPEC, body, key)[0]


def claim(jobs: JobRepository) -> tuple[Job, str]:
    job = jobs.claim(1)
    assert job is not None
    assert job.token is not None
    return job, job.token


def events(jobs: JobRepository, job: Job) -> list[str]:
    stored = jobs.events(ME, job.id, 0, 100)
    assert [event.number for event in stored] == list(range(1, len(stored) + 1))
    return [event.data.get("state", event.type) for event in stored]


def test_a_job_comes_back_as_it_was_submitted(jobs: JobRepository) -> None:
    job = submit(jobs)
    assert jobs.get(ME, job.id) == job
    assert (job.state, job.spec) == ("pending", SPEC)
    assert jobs.list(ME, 10) == (job,)
    assert events(jobs, job) == ["pending"]


def test_another_owner_sees_nothing(jobs: JobRepository) -> None:
    job = submit(jobs)
    assert jobs.list("other", 10) == ()
    for call in (jobs.get, jobs.cancel, jobs.resume):
        with pytest.raises(NotFound):
            call("other", job.id)
    with pytest.raises(NotFound):
        jobs.events("other", job.id, 0, 10)


def test_one_key_gives_one_job_and_another_body_is_refused(jobs: JobRepository) -> None:
    first, again = jobs.submit(ME, SPEC, "b", "k"), jobs.submit(ME, SPEC, "b", "k")
    assert (first[0], again) == (again[0], (first[0], False))
    assert first[1]
    with pytest.raises(IdempotencyKeyReused):
        jobs.submit(ME, SPEC, "other", "k")
    assert jobs.submit("other", SPEC, "other", "k")[1]


def test_a_hundred_submissions_at_once_with_one_key_give_one_job(jobs: JobRepository) -> None:
    found: list[str] = []
    start = threading.Barrier(20)

    def run() -> None:
        start.wait()
        found.extend(submit(jobs, key="k").id for _ in range(5))

    threads = [threading.Thread(target=run) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 100
    assert len(set(found)) == 1


def test_the_oldest_waiting_job_is_claimed_and_no_more_than_allowed_run(jobs: JobRepository) -> None:
    first, second = submit(jobs), submit(jobs)
    claimed, _ = claim(jobs)
    assert claimed.id == first.id
    assert jobs.claim(1) is None
    other = jobs.claim(2)
    assert other is not None
    assert other.id == second.id
    assert jobs.claim(5) is None


def test_owners_take_turns_and_what_was_begun_goes_on_first(jobs: JobRepository) -> None:
    mine = [submit(jobs) for _ in range(3)]
    theirs = [jobs.submit("other", SPEC, "b", None)[0] for _ in range(2)]
    order = []
    for _ in range(3):
        job, token = claim(jobs)
        order.append(job.id)
        jobs.begin(job.id, token, 42, 1.5)
        jobs.finish(job.id, token, "completed")
    assert order == [mine[0].id, theirs[0].id, mine[1].id]
    begun, token = claim(jobs)
    assert begun.id == theirs[1].id
    jobs.interrupt(begun.id, token, "killed")
    assert claim(jobs)[0].id == begun.id


def test_a_trainer_lives_its_life(jobs: JobRepository) -> None:
    job, token = submit(jobs), ""
    _, token = claim(jobs)
    assert jobs.begin(job.id, token, 42, 1.5).pid == 42
    assert not jobs.append(job.id, token, "progress", {"step": 1})
    jobs.finish(job.id, token, "completed", adapter="tiny:bot@1")
    done = jobs.get(ME, job.id)
    assert (done.state, done.adapter, done.progress, done.pid) == ("completed", "tiny:bot@1", {"step": 1}, None)
    assert events(jobs, job) == ["pending", "running", "trainer_started", "progress", "completed"]
    assert not jobs.any_open()


def test_a_dead_trainers_token_changes_nothing_any_more(jobs: JobRepository) -> None:
    job = submit(jobs)
    _, old = claim(jobs)
    jobs.interrupt(job.id, old, "It died.")
    assert jobs.get(ME, job.id).state == "interrupted"
    _, new = claim(jobs)
    with pytest.raises(TrainerOutdated):
        jobs.begin(job.id, old, 1, 1.0)
    with pytest.raises(TrainerOutdated):
        jobs.append(job.id, old, "progress", {})
    with pytest.raises(TrainerOutdated):
        jobs.finish(job.id, old, "completed")
    jobs.interrupt(job.id, old, "It died again.")
    assert jobs.get(ME, job.id).token == new


def test_a_job_whose_trainers_keep_dying_fails_and_a_checkpoint_counts_as_progress(jobs: JobRepository) -> None:
    job = submit(jobs)
    for _ in range(MAX_ATTEMPTS - 1):
        jobs.interrupt(job.id, claim(jobs)[1], "It died.")
    _, token = claim(jobs)
    jobs.append(job.id, token, "checkpoint", {"step": 5})
    jobs.interrupt(job.id, token, "It died.")
    for _ in range(MAX_ATTEMPTS - 1):
        assert jobs.get(ME, job.id).state == "interrupted"
        jobs.interrupt(job.id, claim(jobs)[1], "It died.")
    failed = jobs.get(ME, job.id)
    assert failed.state == "failed"
    assert failed.error is not None
    assert failed.error[1].code == "trainer_died"


def test_trainers_that_die_with_the_machine_do_not_count(jobs: JobRepository) -> None:
    job = submit(jobs)
    for _ in range(2 * MAX_ATTEMPTS):
        jobs.interrupt(job.id, claim(jobs)[1], "The machine went down.", by_itself=False)
    assert jobs.get(ME, job.id).state == "interrupted"


def test_cancelling_ends_a_waiting_job_and_asks_a_running_one(jobs: JobRepository) -> None:
    waiting = submit(jobs)
    assert jobs.cancel(ME, waiting.id).state == "cancelled"
    with pytest.raises(Conflict):
        jobs.cancel(ME, waiting.id)
    running = submit(jobs)
    _, token = claim(jobs)
    assert jobs.cancel(ME, running.id).state == "running"
    assert jobs.append(running.id, token, "progress", {})
    jobs.interrupt(running.id, token, "It died.")  # killed after it was asked
    assert jobs.get(ME, running.id).state == "cancelled"


def test_a_failed_job_goes_on_when_it_is_resumed(jobs: JobRepository) -> None:
    job = submit(jobs)
    with pytest.raises(Conflict):
        jobs.resume(ME, job.id)
    _, token = claim(jobs)
    jobs.finish(job.id, token, "failed", ("StorageError", ErrorInfo("disk_full", "The disk is full.")))
    assert jobs.get(ME, job.id).error == ("StorageError", ErrorInfo("disk_full", "The disk is full."))
    resumed = jobs.resume(ME, job.id)
    assert (resumed.state, resumed.error, resumed.ended_at) == ("pending", None, None)
    assert claim(jobs)[0].id == job.id


def test_jobs_outlive_the_process(any_url: str) -> None:
    first = Database(any_url)
    first.migrate()
    job = submit(repository(first))
    first.close()
    second = Database(any_url)
    assert JobRepository(second).get(ME, job.id) == job
    second.close()


def test_hosts_that_share_a_database_run_what_they_have_the_data_for_and_leave_each_others_trainers_alone(
    jobs: JobRepository,
) -> None:
    first, second = submit(jobs), submit(jobs)
    assert jobs.claim(1, "one", lambda sha256: sha256 != SPEC.dataset_sha256) is None
    claimed = jobs.claim(1, "one", lambda sha256: sha256 == SPEC.dataset_sha256)
    assert claimed is not None
    assert (claimed.id, jobs.claim(1, "one")) == (first.id, None)
    assert jobs.running("two") == ()
    assert jobs.running("one") == (jobs.get(ME, first.id),)
    other = jobs.claim(1, "two")  # as many a host
    assert other is not None
    assert other.id == second.id
    assert claimed.token is not None
    jobs.interrupt(first.id, claimed.token, "It died.")
    assert jobs.claim(2, "two") is None  # its checkpoints are not there
    assert (jobs.any_open("one"), jobs.any_open("three")) == (True, False)
    assert jobs.cancel(ME, first.id).state == "cancelled"
    jobs.resume(ME, first.id)  # the way to another host, where the first is gone for good
    again = jobs.claim(2, "two")
    assert again is not None
    assert again.id == first.id


def test_no_job_is_made_or_resumed_whose_data_is_gone(jobs: JobRepository, database: Database) -> None:
    job = submit(jobs)
    assert jobs.cancel(ME, job.id).state == "cancelled"
    assert DatasetRepository(database).remove(ME, f"rows-{ME}") is None  # somebody else has the same content
    with pytest.raises(NotFound, match="upload it again"):
        submit(jobs)
    with pytest.raises(NotFound, match="upload it again"):
        jobs.resume(ME, job.id)
