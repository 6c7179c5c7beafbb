"""Python, the packages, llama.cpp and the GPU. What could end a process is loaded in one of its own."""

import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from mini_claude.models.native_llama_cpp import NATIVE_FOLDER, faster_instructions, native_library
from mini_claude.terminal.doctor.finding import Finding
from mini_claude.utils.config import Settings

DISTRIBUTION: Final = "mini-claude"
INSTALL: Final = "pip install -c constraints.txt -e . (or `make serve`, which does it)"
# Between versions of these, numbers or interfaces that nobody promised have changed before.
_TESTED_EXACTLY: Final = ("torch", "transformers", "peft", "xllamacpp", "gguf", "gradio", "fastapi", "sqlalchemy")
_CONSTRAINTS: Final = Path(__file__).parents[4] / "constraints.txt"  # in a checkout; elsewhere none
_PROBE_SECONDS: Final = 120.0  # importing torch takes 30 s from a cold disk
_LOAD: Final = (
    "import sys; from mini_claude.engine.llama_cpp_library import llama_cpp_library; "
    "print(llama_cpp_library(sys.argv[1] == 'native').path)"
)
_GPUS: Final = (
    "import json, torch; names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]; "
    "print(json.dumps(names if torch.cuda.is_available() else []))"
)


def check_python(_settings: Settings) -> Finding:
    """The version that the package asks for."""
    wanted = SpecifierSet(metadata.metadata(DISTRIBUTION)["Requires-Python"])
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if platform.python_version() not in wanted:
        return Finding("error", f"{found}, but {wanted} is needed", "make PYTHON=python3.11 serve, in a new .venv")
    return Finding("ok", found)


def check_packages(_settings: Settings) -> Finding:
    """Everything that the package names is there, new enough, and where it matters the version that was tested."""
    required = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or ()]
    needed = [each for each in required if each.marker is None or each.marker.evaluate({"extra": ""})]
    wrong = [text for each in needed if (text := _problem(each))]
    if wrong:
        return Finding("error", "; ".join(wrong), INSTALL)
    untested = [
        f"{name} {installed} (tested: {tested})"
        for name, tested in tested_versions(_CONSTRAINTS).items()
        if name in _TESTED_EXACTLY and (installed := _installed(name)) not in (None, tested)
    ]
    if untested:
        return Finding("warning", f"other versions than the tested ones: {', '.join(untested)}", INSTALL)
    return Finding("ok", f"{len(needed)} packages are there")


def tested_versions(file: Path) -> Mapping[str, str]:
    """Versions by lower-case name, from a file of `name==version` lines; empty where there is no file."""
    if not file.is_file():
        return {}
    pairs = (line.partition("==") for line in file.read_text().splitlines())
    return {name.strip().lower(): version.strip() for name, _, version in pairs if version}


def _problem(requirement: Requirement) -> str | None:
    installed = _installed(requirement.name)
    if installed is None:
        return f"{requirement.name} is not installed"
    if not requirement.specifier.contains(installed, prereleases=True):
        return f"{requirement.name} {installed} is installed and {requirement.specifier} is needed"
    return None


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name).partition("+")[0]  # torch says how it was built: 2.13.0+cpu
    except metadata.PackageNotFoundError:
        return None


def check_llama_cpp(settings: Settings) -> Finding:
    """It can be called, and is the fastest that this processor could run."""
    if settings.engine not in ("auto", "llama_cpp"):
        return Finding("ok", f"not used: engine is {settings.engine}")
    native = settings.native_llama_cpp and native_library() is not None
    said = _probe(_LOAD, "native" if native else "package")
    if said.returncode != 0:
        return Finding("error", f"llama.cpp cannot be loaded: {_last_line(said.stderr)}", INSTALL)
    if native:
        return Finding("ok", "compiled for this processor")
    if settings.native_llama_cpp and NATIVE_FOLDER.exists():
        return Finding("warning", "the compiled one fits another version or processor and is not used", "make native")
    if faster := faster_instructions():
        return Finding("ok", "from the package, which knows AVX2 only", f"for more speed ({faster}): make native")
    return Finding("ok", "from the package")


def check_gpu(settings: Settings) -> Finding:
    """The device of the settings is there."""
    wants_gpu = settings.device.startswith("cuda")
    said = _probe(_GPUS)
    if said.returncode != 0:
        return Finding("error", f"torch cannot be imported: {_last_line(said.stderr)}", INSTALL)
    names: list[str] = json.loads(said.stdout.splitlines()[-1])
    index = int(settings.device.partition(":")[2] or 0)
    if wants_gpu and index >= len(names):
        found = f"device is {settings.device}, and torch sees {len(names) or 'no'} GPU{'s' * (len(names) > 1)}"
        return Finding("error", found, "set MINI_CLAUDE_DEVICE=auto, or install a driver and a torch with CUDA")
    if names:
        return Finding("ok", ", ".join(names) + (" (not used: device is cpu)" if settings.device == "cpu" else ""))
    return Finding("ok", "none; models run on the CPU")


def _probe(code: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run Python code in a process of its own; one that takes too long counts as failed."""
    command = [sys.executable, "-c", code, *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer within {_PROBE_SECONDS:.0f} s")


def _last_line(text: str) -> str:
    """What an exception said, without its traceback."""
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it ended without a word"
