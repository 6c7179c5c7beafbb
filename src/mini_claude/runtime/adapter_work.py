"""What is done with an adapter in a process of its own (short_process.py): take one in, write it out, verify it."""

import importlib.resources
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mini_claude.errors import InvalidRequest, MiniClaudeError
from mini_claude.models.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from mini_claude.models.materialize import materialize, model_lock, source_gguf
from mini_claude.models.model_files import check_model_folder
from mini_claude.runtime.adapter_requests import Base, ExportRequest, ImportRequest, QuantizeRequest, VerifyRequest
from mini_claude.runtime.short_process import limit_memory
from mini_claude.training.adapter_folder import FACTS_FILE, AdapterFacts, check_adapter, import_adapter, read_held_out
from mini_claude.training.complete_folder import complete_file
from mini_claude.types import ModelSpec

if TYPE_CHECKING:
    from mini_claude.training.parity import Certificate

_MAX_DEMO_EXAMPLES: Final = 6


def base_folder(base: Base) -> Path:
    """The base model's files. Raises `ModelLoadError` where there are none yet, `StorageError`."""
    return materialize(base.spec, Path(base.models_dir), allow_download=False, hub_owners=())


def take_in(request: ImportRequest) -> AdapterFacts:
    """Check an adapter and write what was understood of it to the target, complete or not at all.

    Raises `InvalidRequest`, code "unusable_adapter", with the reason and without paths; `ModelLoadError` for a base
    that is damaged; `StorageError`.
    """
    base = base_folder(request.base)
    check_model_folder(base)
    limit_memory()
    source = Path(request.source_folder)
    try:
        files = check_adapter(source, base)
    except MiniClaudeError as error:
        reason = error.message.replace(f"{source}/", "").replace(str(source), "The adapter")
        param = "config" if CONFIG_FILE in reason else "weights"
        raise InvalidRequest(reason, code="unusable_adapter", param=param) from error
    if files.config.use_dora and not request.allow_dora:
        raise InvalidRequest(
            f"{CONFIG_FILE} sets use_dora, and llama.cpp, which serves {request.base.spec.name} here, has no DoRA; "
            "train the adapter without use_dora, or set engine to torch.",
            code="unusable_adapter",
            param="config",
        )
    return import_adapter(source, Path(request.target_folder), base, request.base.spec.name)


def write_out(request: ExportRequest) -> None:
    """Write one file for download; folders are packed, not compressed, since weights hardly shrink.

    Raises `UnsupportedExport` for what the format cannot hold, `ModelLoadError`, `StorageError`.
    """
    base, adapter, target = base_folder(request.base), Path(request.adapter_folder), Path(request.target)
    if request.format == "peft":
        check_adapter(adapter, base)
        _pack([adapter / name for name in (CONFIG_FILE, WEIGHTS_FILE, FACTS_FILE)], request.name, target)
    elif request.format == "merged":
        from mini_claude.training.merge import merge_adapter

        folder = target.with_suffix("")
        try:
            merge_adapter(base, adapter, folder)
            _pack(sorted(folder.iterdir()), request.name, target)
        finally:  # the packed one is waiting to be downloaded
            shutil.rmtree(folder, ignore_errors=True)
    elif request.format == "gguf":
        from mini_claude.training.adapter_gguf import write_adapter_gguf

        write_adapter_gguf(base, adapter, target)
    else:
        from mini_claude.training.merged_gguf import GGUFTemplate

        GGUFTemplate(source_gguf(base)).write(base, adapter, target, request.tensor_type)


def quantize(request: QuantizeRequest) -> None:
    """Write the base's weights in another type. Raises as `write_out`."""
    from mini_claude.runtime.served_gguf import is_made_of
    from mini_claude.training.merged_gguf import GGUFTemplate

    base, target = base_folder(request.base), Path(request.target)
    source = source_gguf(base)
    with model_lock(Path(request.base.models_dir), request.base.spec.name):
        if source is None or not is_made_of(target, source):  # made while this process waited
            GGUFTemplate(source).write(base, None, target, request.tensor_type)


def verify(request: VerifyRequest) -> "Certificate":
    """See `certify_adapter`."""
    from mini_claude.runtime.certification import CertificationRequest, certify_adapter

    base, adapter = base_folder(request.base), Path(request.adapter_folder)
    sequences = read_held_out(adapter) or _demo_sequences(request.base.spec, base)
    family = request.base.spec.family
    return certify_adapter(CertificationRequest(str(base), str(adapter), sequences, request.scratch_folder, family))


def _demo_sequences(spec: ModelSpec, base: Path) -> tuple[tuple[int, ...], ...]:
    from mini_claude.models.model_factory import create_chat_model
    from mini_claude.training.dataset_formats import read_examples
    from mini_claude.training.examples import RowProblem, TokenizedExample
    from mini_claude.training.parity import MAX_TOKENS
    from mini_claude.training.tokenizing import tokenize

    chat_model = create_chat_model(spec, base)
    sequences: list[tuple[int, ...]] = []
    with importlib.resources.as_file(importlib.resources.files("mini_claude.training") / "demo.jsonl") as path:
        for example in read_examples(path):
            tokens = example if isinstance(example, RowProblem) else tokenize(example, chat_model, MAX_TOKENS)
            if isinstance(tokens, TokenizedExample):
                sequences.append(tokens.token_ids)
            if len(sequences) == _MAX_DEMO_EXAMPLES:
                break
    return tuple(sequences)


def _pack(paths: list[Path], name: str, target: Path) -> None:
    with complete_file(target) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for path in paths:
            if path.is_file():
                archive.write(path, f"{name}/{path.name}")
