"""Which models users may use, bring into memory and train: three settings of patterns. Admins may do all of it.

An adapter follows its base: its name before the colon is what counts.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Final

from mini_claude.errors import Forbidden
from mini_claude.services.identity import Caller
from mini_claude.utils.config import Settings

CODE: Final = "model_forbidden"


class ModelAccess:
    """The rules of one server. `model` is a model's name without an adapter."""

    def __init__(self, settings: Settings) -> None:
        self._use = settings.users_may_use
        self._load = settings.users_may_load
        self._train = settings.users_may_train

    def may_use(self, caller: Caller, model: str) -> bool:
        """Whether the caller may talk to it, or have data read by it; what one may not use is in no list either."""
        return caller.is_admin or _matches(self._use, model)

    def may_load(self, caller: Caller, model: str) -> bool:
        """Whether the caller's request may bring it into memory."""
        return caller.is_admin or _matches(self._load, model)

    def may_train(self, caller: Caller, model: str) -> bool:
        """Whether the caller may train it, if they may use it."""
        return caller.is_admin or _matches(self._train, model)

    def require_use(self, caller: Caller, model: str) -> None:
        """Raise `Forbidden` unless the caller may use it."""
        if not self.may_use(caller, model):
            raise _forbidden(
                f"The model {model!r} is not for users of this server; GET /v1/models lists those that are"
            )

    def require_train(self, caller: Caller, model: str) -> None:
        """Raise `Forbidden` unless the caller may use it and train it."""
        self.require_use(caller, model)
        if not self.may_train(caller, model):
            raise _forbidden(f"Users of this server may not train the model {model!r}; an admin may")

    def require_loaded(self, caller: Caller, model: str, loaded: Sequence[str]) -> None:
        """Raise `Forbidden` for a model that is not in memory, unless the caller may bring it there."""
        if not self.may_load(caller, model) and model not in loaded:
            raise _forbidden(
                f"The model {model!r} is not in memory, and users of this server may not load it; an admin may"
            )


def _matches(patterns: Sequence[str], model: str) -> bool:
    return any(fnmatchcase(model, pattern) for pattern in patterns)


def _forbidden(reason: str) -> Forbidden:
    return Forbidden(f"{reason}.", code=CODE, param="model")
