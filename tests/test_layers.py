"""Dependencies point one way (docs/architecture.md, Layers)."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mini_claude

ROOT = Path(str(mini_claude.__path__[0]))
BOTTOM = {"types", "errors"}
MAY_IMPORT = {
    "types": set(),
    "errors": set(),
    "utils": BOTTOM,
    "models": BOTTOM | {"utils"},
    "engine": BOTTOM | {"utils", "models"},
    "training": BOTTOM | {"utils", "models"},
    "runtime": BOTTOM | {"utils", "models", "engine", "training", "data", "records"},
    "data": BOTTOM | {"utils", "records", "training"},
    "services": BOTTOM | {"utils", "models", "runtime", "data", "records", "training"},
    "web": BOTTOM | {"utils", "services", "runtime", "records", "training"},
    "terminal": BOTTOM | {"utils", "services", "data", "records", "models", "training"},
    "cli": BOTTOM | {"utils", "terminal"},
}
ONLY_IN = {
    "fastapi": {"web"},
    "starlette": {"web"},
    "sqlalchemy": {"data"},
    "alembic": {"data"},
    "limits": {"data", "services"},
}
TORCH_FREE = (
    *("engine/scheduler.py", "engine/kv_cache.py", "engine/sequence.py", "engine/engine.py"),
    *("engine/adapter_weights.py", "engine/loaded_adapters.py", "models/adapter_files.py"),
)
HEAVY = {"torch", "transformers"}


def files() -> Iterator[tuple[Path, str]]:
    for path in sorted(ROOT.rglob("*.py")):
        yield path, path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)  # X of `from data import X` is a module


def layers_of(names: Iterator[str]) -> set[str]:
    """The parts of mini_claude among imported names; what the repositories return are plain values of their own."""
    parts = (name.split(".") for name in names)
    return {
        "records" if part[1:3] == ["data", "records"] else part[1]
        for part in parts
        if part[0] == "mini_claude" and len(part) > 1
    }


def test_every_layer_imports_only_what_is_below_it() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {sorted(extra)}"
        for path, layer in files()
        if layer != "__init__" and (extra := layers_of(imports(path)) - MAY_IMPORT[layer] - {layer})
    ]
    assert wrong == []


def test_each_library_stays_in_its_layer() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {library}"
        for path, layer in files()
        for library in {name.partition(".")[0] for name in imports(path)} & ONLY_IN.keys()
        if layer not in ONLY_IN[library]
    ]
    assert wrong == []


def test_only_the_page_knows_gradio() -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for path, _ in files()
        if "gradio" in {name.partition(".")[0] for name in imports(path)} and "page" not in path.relative_to(ROOT).parts
    ]
    assert wrong == []


@pytest.mark.parametrize("name", TORCH_FREE)
def test_scheduling_and_accounting_know_no_torch(name: str) -> None:
    assert not {imported.partition(".")[0] for imported in imports(ROOT / name)} & HEAVY


@pytest.mark.parametrize("module", ["mini_claude.web.api", "mini_claude.cli", "mini_claude.runtime.supervisor"])
def test_importing_it_leaves_torch_alone(module: str) -> None:
    code = f"import sys, {module}; sys.exit(bool({HEAVY!r} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
