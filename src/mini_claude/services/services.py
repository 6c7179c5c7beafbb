"""All services over one runtime and one database: what an API worker and the terminal commands work with."""

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO

from anyio.to_thread import run_sync
from limits.storage import Storage

from mini_claude.data.adapters import AdapterRepository
from mini_claude.data.database import Database
from mini_claude.data.datasets import DatasetRepository
from mini_claude.data.default_models import DefaultModelRepository
from mini_claude.data.door import DoorRepository
from mini_claude.data.feedback import FeedbackRepository
from mini_claude.data.host import host_of
from mini_claude.data.keys import KeyRepository
from mini_claude.data.limit_counters import LimitCounters
from mini_claude.data.models import ModelRepository
from mini_claude.data.preferences import PreferenceRepository
from mini_claude.data.sessions import SessionRepository
from mini_claude.data.token_secret import token_secret
from mini_claude.data.users import UserRepository
from mini_claude.errors import InvalidRequest
from mini_claude.runtime.runtime import Runtime
from mini_claude.services.adapters import AdapterService
from mini_claude.services.before_after import BeforeAfterService
from mini_claude.services.catalog import Catalog
from mini_claude.services.chat import ChatService
from mini_claude.services.credentials import Credentials
from mini_claude.services.datasets import DatasetService
from mini_claude.services.default_model import DefaultModel
from mini_claude.services.engine_choice import EngineChoice
from mini_claude.services.feedback import FeedbackService
from mini_claude.services.feedback_datasets import FeedbackDatasets
from mini_claude.services.keys import KeyService
from mini_claude.services.limits import LimitService, default_limits, redis_windows
from mini_claude.services.login_attempts import LoginAttempts
from mini_claude.services.model_access import ModelAccess
from mini_claude.services.models import ModelService
from mini_claude.services.replies import ReplyStarter
from mini_claude.services.session_export import SessionExport
from mini_claude.services.tokens import TokenSigner
from mini_claude.services.training import TrainingService
from mini_claude.services.users import LoginService, UserService
from mini_claude.services.xray import XrayService
from mini_claude.utils.config import Settings


@dataclass(frozen=True, slots=True)
class Services:
    """Built once at start-up by `open_services`, closed once at the end."""

    settings: Settings
    runtime: Runtime
    database: Database
    keys: KeyService
    users: UserService
    logins: LoginService
    credentials: Credentials
    limits: LimitService
    models: ModelService
    adapters: AdapterService
    datasets: DatasetService
    training: TrainingService
    chat: ChatService
    xray: XrayService
    feedback: FeedbackService
    feedback_datasets: FeedbackDatasets
    session_export: SessionExport
    before_after: BeforeAfterService
    closing: ExitStack

    async def aclose(self) -> None:
        """Store what runs and close the database. The runtime is its maker's to close, after this."""
        await self.chat.aclose()
        await self.limits.aclose()
        await run_sync(self.closing.close)


async def open_services(settings: Settings, runtime: Runtime) -> Services:
    """Open and migrate the database and build the services on it.

    Raises `InvalidRequest` for a database_url or a limits_url that cannot work, also a database in memory where there
    is another worker, and `StorageError` when the database or the file of counts refuses.
    """
    with ExitStack() as opened:
        database = Database(settings.effective_database_url)
        opened.callback(database.close)
        if database.in_memory:
            opened.enter_context(_only_process(settings))
        await run_sync(database.migrate)
        catalog = Catalog(
            ModelRepository(database), DefaultModel(DefaultModelRepository(database), settings.default_model)
        )
        engine_choice = EngineChoice(runtime, settings)
        access = ModelAccess(settings)
        adapters = AdapterService(AdapterRepository(database), catalog, engine_choice, access, settings)
        models = ModelService(runtime, catalog, adapters, access, settings)
        datasets = DatasetRepository(database)
        dataset_service = DatasetService(datasets, models, settings)
        training = TrainingService(database, datasets, models, engine_choice)
        host = await run_sync(host_of, database, settings.data_dir)
        windows, limits = await _limits(settings, database, opened)
        door = DoorRepository(database)
        keys = KeyService(KeyRepository(database), door)
        user_rows = UserRepository(database)
        users = UserService(user_rows, SessionRepository(database), PreferenceRepository(database), door)
        signer = TokenSigner(await run_sync(token_secret, settings.data_dir), settings.token_seconds)
        logins = LoginService(users, user_rows, signer, LoginAttempts(windows))
        replies = ReplyStarter(runtime, models, limits)
        chat = ChatService(runtime, models, replies, SessionRepository(database), host)
        feedback = FeedbackService(FeedbackRepository(database), PreferenceRepository(database))
        return Services(
            settings=settings,
            runtime=runtime,
            database=database,
            keys=keys,
            users=users,
            logins=logins,
            credentials=Credentials(keys, logins, door),
            limits=limits,
            models=models,
            adapters=adapters,
            datasets=dataset_service,
            training=training,
            chat=chat,
            xray=XrayService(models, replies, SessionRepository(database)),
            feedback=feedback,
            feedback_datasets=FeedbackDatasets(chat, feedback, dataset_service),
            session_export=SessionExport(chat, feedback),
            before_after=BeforeAfterService(training, dataset_service, chat),
            closing=opened.pop_all(),
        )


async def _limits(settings: Settings, database: Database, opened: ExitStack) -> tuple[Storage, LimitService]:
    """Counts in memory where everything is, else in a file: the page's process counts too, even beside one worker."""
    url = settings.plain_limits_url
    shared = None if url is None else redis_windows(url)
    counters = await run_sync(LimitCounters, None if database.in_memory else settings.data_dir / "limits.db")
    opened.callback(counters.close)
    windows = shared or counters
    return windows, LimitService(default_limits(settings), counters, windows)


@contextmanager
def _only_process(settings: Settings) -> Iterator[None]:
    """Hold a lock that shows other processes of this data directory that sessions are in our memory.

    `settings.workers` alone does not tell: uvicorn has an option of its own.
    """
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (settings.data_dir / "memory-database.lock").open("w") as lock:
        if settings.workers > 1 or not _try_lock(lock):
            raise InvalidRequest(
                "database_url = sqlite:// keeps sessions and keys in the memory of one process, so several workers "
                "would each see others: use one worker, or leave database_url out to use a file.",
                param="database_url",
            )
        yield


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
