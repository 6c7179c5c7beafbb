"""A bounded number of things at once: who comes when all places are taken is sent away, and does not wait."""

from collections.abc import Iterator
from contextlib import contextmanager

from mini_claude.errors import Overloaded


class Places:
    """So many places for one kind of thing. Used from one event loop."""

    def __init__(self, num_places: int, things: str) -> None:
        """`things` are called so in the error."""
        self.num_places = num_places
        self._things = things
        self._num_taken = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """A place for the time of the block. Raises `Overloaded`."""
        if self._num_taken >= self.num_places:
            raise Overloaded(f"{self.num_places} {self._things} are under way: come again after them.", retry_after=5.0)
        self._num_taken += 1
        try:
            yield
        finally:
            self._num_taken -= 1
