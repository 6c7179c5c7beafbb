"""A comparison: one question, two contestants in the order in which their answers are shown, and what came of it."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from mini_claude.errors import Conflict, InvalidRequest
from mini_claude.types import Message
from mini_claude.web.page.race import Contestant, Race

Choice = Literal["a", "b", "both_good", "both_bad"]
LETTERS: Final = ("A", "B")
CHOSEN: Final[Mapping[Choice, int]] = {"a": 0, "b": 1}  # whose answer is the better one


@dataclass(slots=True)
class Comparison:
    """`race` None: the contestants have not been asked yet. Only the server has it, so that no browser knows names."""

    messages: tuple[Message, ...]
    contestants: tuple[Contestant, ...]
    blind: bool
    race: Race | None = None
    choice: Choice | None = None

    @property
    def texts(self) -> list[str]:
        """The answers as far as they are written."""
        return ["", ""] if self.race is None else [answer.text for answer in self.race.answers]

    @property
    def can_be_judged(self) -> bool:
        """Whether both answers came to their own end: nobody should learn from one that was cut."""
        return self.race is not None and all(answer.is_whole for answer in self.race.answers)

    @property
    def shows_names(self) -> bool:
        """A blind one only once nothing can be chosen any more."""
        return not self.blind or self.choice is not None

    def check_choice(self) -> None:
        """Raise `InvalidRequest` while there is nothing to choose between, and `Conflict` where one has chosen."""
        if not self.can_be_judged:
            raise InvalidRequest("Wait until both answers are there, then choose.")
        if self.choice is not None:
            raise Conflict("You have chosen already: ask again to compare again.")

    def choose(self, choice: Choice) -> None:
        """Raises as `check_choice`."""
        self.check_choice()
        self.choice = choice

    @property
    def preferred(self) -> int | None:
        """Index of the contestant whose answer is the better one, if one is."""
        return None if self.choice is None else CHOSEN.get(self.choice)


def new_comparison(question: str, system: str, contestants: Sequence[Contestant], *, blind: bool) -> Comparison:
    """Draws by lot who comes first when it is blind. Raises `InvalidRequest` for an empty question."""
    if not question.strip():
        raise InvalidRequest("The question is empty; write something.")
    shown = tuple(contestants)
    if blind and secrets.randbelow(2):
        shown = shown[::-1]
    told = (Message("system", system),) if system.strip() else ()
    return Comparison((*told, Message("user", question)), shown, blind)
