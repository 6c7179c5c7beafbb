"""What the renderer needs of a tokenizer, read from a model folder.

transformers knows how each kind of tokenizer is put together, but importing it takes seconds and hundreds of megabytes,
with torch. So a folder that this project makes also gets a summary of what transformers read, and whoever finds one
needs no transformers.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tokenizers import Tokenizer

from mini_claude.errors import ModelLoadError
from mini_claude.models.model_files import load_json_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SUMMARY_FILE: Final = "tokenizer_summary.json"


@dataclass(frozen=True, slots=True)
class TokenizerSummary:
    """A fast tokenizer (`backend`), its roles for control tokens ("eos_token": "</s>") and its chat template.

    `begins_with_bos`: it puts BOS before a text that stands alone.
    """

    backend: Tokenizer
    special_tokens: Mapping[str, str | list[str]]
    chat_template: str | None
    begins_with_bos: bool

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> "TokenizerSummary":
        """Raises `ModelLoadError` for a slow tokenizer."""
        if not tokenizer.is_fast:
            raise ModelLoadError("The model has no fast tokenizer; add its tokenizer.json to the folder.")
        template = tokenizer.chat_template
        if isinstance(template, dict):  # named templates: for chat, for tools, ...
            template = template.get("default")
        return cls(
            tokenizer.backend_tokenizer,
            dict(tokenizer.special_tokens_map),
            template,
            tokenizer.bos_token_id is not None and tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id,
        )

    def token_id(self, role: str) -> int | None:
        """The id of "bos_token" or "eos_token", where there is one."""
        token_id: int | None = self.backend.token_to_id(str(self.special_tokens.get(role, "")))
        return token_id


def read_tokenizer(folder: Path) -> TokenizerSummary:
    """From its summary, or by transformers. Raises `ModelLoadError` where there is none that can be read."""
    path = folder / SUMMARY_FILE
    if not path.exists():
        return TokenizerSummary.of(_by_transformers(folder))
    values = load_json_object(path)
    try:
        return TokenizerSummary(
            Tokenizer.from_str(values["backend"]),
            dict(values["special_tokens"]),
            None if values["chat_template"] is None else str(values["chat_template"]),
            bool(values["begins_with_bos"]),
        )
    except Exception as error:  # tokenizers raises a bare Exception
        raise ModelLoadError(f"{path} is damaged ({error!r}); delete it, and it is not needed.") from error


def write_summary(folder: Path) -> None:
    """Spare the next reader of this folder transformers. Raises `ModelLoadError` and `OSError`."""
    summary = TokenizerSummary.of(_by_transformers(folder))
    values: dict[str, Any] = {
        "backend": summary.backend.to_str(),
        "special_tokens": dict(summary.special_tokens),
        "chat_template": summary.chat_template,
        "begins_with_bos": summary.begins_with_bos,
    }
    (folder / SUMMARY_FILE).write_text(json.dumps(values))


def _by_transformers(folder: Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(  # nosec B615
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the libraries raise anything from OSError to a bare Exception
        raise ModelLoadError(
            f"The tokenizer in {folder} cannot be read ({error}); restore its files from where the model came from."
        ) from error
    return tokenizer
