"""The command: every check, one line each, and an exit code."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Annotated, Final

import typer
from pydantic import ValidationError
from rich.console import Console

from mini_claude.errors import MiniClaudeError
from mini_claude.terminal.doctor import installation, models, network, storage
from mini_claude.terminal.doctor.finding import Finding, Level
from mini_claude.utils.config import Settings, settings_problem

Check = Callable[[Settings], Finding]
CHECKS: Final[Mapping[str, Check]] = {
    "python": installation.check_python,
    "packages": installation.check_packages,
    "llama.cpp": installation.check_llama_cpp,
    "gpu": installation.check_gpu,
    "data directory": storage.check_data_directory,
    "permissions": storage.check_permissions,
    "disk": storage.check_disk,
    "database": storage.check_database,
    "models": models.check_models,
    "port": network.check_port,
    "open door": network.check_open_door,
    "limits": network.check_shared_limits,
    "server": network.check_server,
}
_STYLES: Final[Mapping[Level, str]] = {"ok": "green", "warning": "yellow", "error": "bold red"}
_SEVERITY: Final[tuple[Level, ...]] = ("ok", "warning", "error")

console = Console(soft_wrap=True, highlight=False, markup=False)


def examine() -> dict[str, Finding]:
    """What each check found, by its name; with settings that cannot be read, that alone."""
    try:
        settings = Settings()
    except ValidationError as error:
        return {"settings": Finding("error", settings_problem(error), "correct it")}
    except MiniClaudeError as error:
        return {"settings": Finding("error", error.message, "correct it")}
    return {name: _guarded(check, settings) for name, check in CHECKS.items()}


def _guarded(check: Check, settings: Settings) -> Finding:
    """What is broken must not keep the other checks from being made."""
    try:
        return check(settings)
    except MiniClaudeError as error:
        return Finding("error", error.message, "the other lines may say why")
    except OSError as error:
        return Finding("error", f"{error.filename}: {error.strerror}", "mend its permissions, or its disk")
    except Exception as error:
        found = f"the check itself failed: {type(error).__name__}: {error}"
        return Finding("error", found, "the other lines may say why")


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON object.")] = False,
) -> None:
    """Check the set-up, disk, model files, database, GPU, port, permissions and server; exit code 1 for an error."""
    findings = examine()
    worst = max((finding.level for finding in findings.values()), key=_SEVERITY.index)
    if as_json:
        checks = [{"check": name, **asdict(finding)} for name, finding in findings.items()]
        typer.echo(json.dumps({"status": worst, "checks": checks}, indent=2))
    else:
        for name, finding in findings.items():
            _print(name, finding)
    raise typer.Exit(1 if worst == "error" else 0)


def _print(name: str, finding: Finding) -> None:
    console.print(f"{finding.level:<8}", style=_STYLES[finding.level], end="")
    fix = f"  ->  {finding.fix}" if finding.fix else ""
    console.print(f"{name:<15}{' '.join(finding.found.split())}{fix}")
