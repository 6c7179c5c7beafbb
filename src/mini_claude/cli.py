"""The `mini-claude` command. Each part lives in terminal/; here they are wired, and `serve` starts the server."""

import errno
import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Annotated, Any, Final

import typer
import uvicorn
from pydantic import ValidationError
from rich.console import Console

from mini_claude.errors import Conflict, Forbidden, InvalidRequest, MiniClaudeError, StorageError
from mini_claude.terminal import adapters, backup, bench, datasets, keys, models, native, train, users
from mini_claude.terminal.chat import TerminalChat
from mini_claude.terminal.configuration import print_settings
from mini_claude.terminal.database import door_is_shut
from mini_claude.terminal.doctor.command import doctor
from mini_claude.terminal.server import bind_error, is_loopback, running_server
from mini_claude.utils.config import NO_KEY_SENTENCE, Settings, settings_problem
from mini_claude.utils.waiting_server import WaitingServer

API: Final = "mini_claude.web.api:app"
STARTUP_FAILURE: Final = 3  # uvicorn's exit code for it
WS_ROOM_BYTES: Final = 65_536  # beyond the limit: a message that is a little too large is still told why

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Chat with a small language model of your own.")
app.add_typer(models.app, name="models")
app.add_typer(datasets.app, name="datasets")
app.command()(train.train)
app.add_typer(train.jobs_app, name="jobs")
app.add_typer(adapters.app, name="adapters")
app.command()(adapters.verify)
app.add_typer(keys.app, name="keys")
app.add_typer(users.app, name="users")
app.command()(bench.bench)
app.command()(backup.backup)
app.command()(backup.restore)
app.command("compile")(native.compile_native)
app.command()(doctor)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    workers: Annotated[int | None, typer.Option(help="API worker processes.")] = None,
    reload: Annotated[bool, typer.Option(help="Restart on changes of the code.")] = False,
    allow_unauthenticated_network: Annotated[
        bool, typer.Option(help="Serve other machines without any API key.")
    ] = False,
) -> None:
    """Start the server."""
    given = {"host": host, "port": port, "workers": workers}
    given["allow_unauthenticated_network"] = True if allow_unauthenticated_network else None
    for name, value in given.items():
        if value is not None:
            os.environ[f"MINI_CLAUDE_{name.upper()}"] = str(value)  # worker processes read their own Settings
    settings = Settings()
    _check_bind(settings)
    address = f"[{settings.host}]" if ":" in settings.host else settings.host
    Console(stderr=True).print(
        f"Mini-Claude listens on http://{address}:{settings.port}  (Ctrl-C ends it)", style="bold", markup=False
    )
    signal.signal(signal.SIGTERM, _end_well)  # uvicorn raises the signal again when it has ended in order
    options: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "log_config": None,
        "access_log": False,
        "forwarded_allow_ips": list(settings.trusted_proxies),
        "http": "mini_claude.web.connections:HttpConnection",
        "ws": "mini_claude.web.connections:WebSocketConnection",
        "ws_max_size": settings.max_body_bytes + WS_ROOM_BYTES,
        "limit_concurrency": settings.max_connections,
        "timeout_graceful_shutdown": int(settings.shutdown_seconds) + 1,
    }
    if reload or settings.workers > 1:  # in processes and with servers that uvicorn makes
        uvicorn.run(API, workers=settings.workers, reload=reload, **options)
        return
    server = WaitingServer(uvicorn.Config(API, **options))
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:  # its log says why
        sys.exit(STARTUP_FAILURE)


def _end_well(_signum: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def _check_bind(settings: Settings) -> None:
    """Refuse, before anything is started, what could not work or would be open to strangers."""
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings.logs_dir.mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"The data directory {settings.data_dir} cannot be used: {error.strerror}. "
            "Set MINI_CLAUDE_DATA_DIR to a folder that you may write to."
        ) from error
    is_open = is_loopback(settings.host) or settings.allow_unauthenticated_network
    if not is_open and not door_is_shut(settings):
        raise Forbidden(f"{settings.host} can be reached from other machines. {NO_KEY_SENTENCE}")
    if settings.workers > 1 and settings.database_in_memory:
        raise InvalidRequest(
            "database_url = sqlite:// keeps sessions in the memory of one process, so several workers would each "
            "see others: use one worker, or leave database_url out to use a file."
        )
    refused = bind_error(settings)
    if refused is not None and refused.errno == errno.EADDRINUSE:
        raise Conflict(
            f"Port {settings.port} is in use. Choose another one: mini-claude serve --port {settings.port + 1}"
        ) from refused
    if refused is not None:
        raise StorageError(f"{settings.host}:{settings.port} cannot be used: {refused.strerror}.") from refused


@app.command()
def chat(
    model: Annotated[str | None, typer.Option(help="The model that answers.")] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    temperature: Annotated[
        float, typer.Option(help="0 always takes the likeliest word; small models ramble above 0.5.")
    ] = 0.2,
) -> None:
    """Chat in the terminal; starts a server for the occasion where none runs."""
    console = Console()
    with running_server(Settings()) as client:
        TerminalChat(client, console, model=model, system=system, temperature=temperature).run()


@app.command()
def config() -> None:
    """Show every setting with its effective value."""
    print_settings(Console(), Settings())


def main() -> None:
    """Entry point of the console script: errors of ours are one sentence, not a traceback."""
    try:
        app()
    except MiniClaudeError as error:
        _die(error.message)
    except ValidationError as error:
        _die(settings_problem(error))


def _die(message: str) -> None:
    Console(stderr=True, emoji=False).print(f"error: {message}", style="red", markup=False, soft_wrap=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
