"""Where llama.cpp has keys and values: in rows of its context what is computed now, in copies what may be of use later.

A context is laid out in one of two ways. With a row of its own for each sequence, a token looks at its row and at
nothing else, but all rows are as long as the longest, and only neighbours are computed together. In a pool that all
share, any mixture fits, but each token looks past everybody's cells: a quarter slower where 32 are at it. Making a
context anew takes about as long as a step or two, so the layout follows what is asked for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mini_claude.engine.kv_cache import CacheEntry
from mini_claude.engine.llama_cpp_library import WHOLE_STATE, WINDOWED_STATE, LlamaCppLibrary

MAX_CELLS: Final = 2  # times the budget: rows are longer than what is in them
_SHORTEST_ROW: Final = 256  # tokens; llama.cpp makes lengths multiples of it
_MAX_WASTE: Final = 4  # so many tokens may be copied for one that is wanted
_PATIENCE: Final = 64  # steps in a row that could do without a shared pool before it is given up
_HEADER_BYTES: Final = 8  # of a row as llama.cpp writes it
_ALL: Final = -1  # positions or sequences, in arguments of the memory's functions


@dataclass(frozen=True, slots=True)
class Layout:
    """`num_tokens` cells for each of `num_rows`, or, shared, for all of them together."""

    num_rows: int
    num_tokens: int
    is_shared: bool = False


@dataclass(frozen=True, slots=True)
class _Saved:
    """A row as llama.cpp writes it: a header, and what is in each of its caches (two where some layers have a window).

    There are `num_tokens` in them, of which only the first `num_wanted` count.
    """

    header: NDArray[np.uint8]
    cells: tuple[NDArray[np.uint8], ...]
    num_tokens: int
    num_wanted: int


class LlamaCppCache:
    """Cache entries in a context's rows and outside of them. See `CacheStorage`.

    An entry is in a row, or saved, or empty. It stays in its row until somebody else needs that one.
    """

    def __init__(
        self,
        library: LlamaCppLibrary,
        make_context: Callable[[Layout], int],
        budget: int,
        max_rows: int,
        *,
        has_window: bool,
    ) -> None:
        """`budget` is what running sequences may hold in all, in tokens; at most `max_rows` are computed at once.

        `has_window`: some layers look back over a window only. Of what lies before it llama.cpp keeps nothing that can
        be relied on, so all of a sequence can be continued and no shorter part of it.
        """
        self._library = library
        self._make_context = make_context
        self._budget = budget
        self._max_rows = max_rows
        self._has_window = has_window
        self._rows: dict[int, CacheEntry] = {}
        self._row_of: dict[CacheEntry, int] = {}
        self._saved: dict[CacheEntry, _Saved] = {}
        self._copies: dict[CacheEntry, _Saved] = {}  # made since the last step, of entries in rows
        self._placed: dict[CacheEntry, int] = {}  # by the last step, if they are neighbours and nobody has left since
        self._num_patient = 0  # steps in a row that could have done without the shared pool
        self.layout = Layout(1, 2 * _SHORTEST_ROW)
        self.num_contexts = 1  # made so far; the address of one that is gone may be the next one's
        self._context: int | None = make_context(self.layout)

    @property
    def context(self) -> int:
        """llama.cpp's, made anew where that failed the last time."""
        if self._context is None:
            self._context = self._make_context(self.layout)
            self.num_contexts += 1
        return self._context

    def place(self, needs: Mapping[CacheEntry, int], *, together: bool) -> Mapping[CacheEntry, int]:
        """The row of each entry, with room for as many tokens as it `needs`.

        `together`: all of them are computed in one call, so they become neighbours where rows are not shared.
        A change of layout makes another `context`.
        """
        self._copies.clear()
        if together and needs.keys() == self._placed.keys() and max(needs.values()) <= self.layout.num_tokens:
            return self._placed  # as in most steps
        layout = self._suitable(needs, together)
        if layout != self.layout:
            self._change(layout)
        window = range(layout.num_rows) if layout.is_shared else self._window(needs)
        for entry in [entry for row, entry in self._rows.items() if entry not in needs]:
            if self._row_of[entry] in window:
                self._save(entry)
        for entry in needs:
            if self._row_of.get(entry) not in window:
                self._save(entry)
        free = (row for row in window if row not in self._rows)
        for entry in needs:
            if entry not in self._row_of:
                self._restore(entry, next(free))
        rows = {entry: self._row_of[entry] for entry in needs}
        self._placed = {} if layout.is_shared else rows
        return rows

    def can_reuse(self, source: CacheEntry, num_tokens: int) -> bool:
        """See `CacheStorage`. What is copied is all of it, and the target's row must be long enough to take it."""
        if self._has_window and num_tokens < source.num_computed:
            return False
        return source.num_computed <= _MAX_WASTE * num_tokens + _SHORTEST_ROW

    def copy_prefix(self, source: CacheEntry, target: CacheEntry, num_tokens: int) -> None:
        """See `CacheStorage`."""
        if source in self._row_of and source not in self._copies:
            self._copies[source] = self._state(source)
        saved = self._copies[source] if source in self._row_of else self._saved[source]
        self._saved[target] = _Saved(saved.header, saved.cells, saved.num_tokens, num_tokens)

    def truncate(self, entry: CacheEntry, num_tokens: int) -> None:
        """See `CacheStorage`."""
        if entry in self._row_of:
            self._remove(self._row_of[entry], num_tokens)
        elif (saved := self._saved.get(entry)) is not None:
            self._saved[entry] = _Saved(saved.header, saved.cells, saved.num_tokens, num_tokens)

    def free(self, entry: CacheEntry) -> None:
        """See `CacheStorage`."""
        self._saved.pop(entry, None)
        if entry in self._row_of:  # else it ended before its first step
            self._vacate(entry)

    def close(self) -> None:
        """Give the context back."""
        self._library.free(self._context)

    def _suitable(self, needs: Mapping[CacheEntry, int], together: bool) -> Layout:
        """The present layout where it will do."""
        saved = {entry: self._saved[entry].num_tokens if entry in self._saved else 0 for entry in needs}
        longest = max(max(needs[entry], saved[entry]) for entry in needs)
        rows = self._suitable_rows(len(needs), longest) if together else None
        self._num_patient = self._num_patient + 1 if rows is not None else 0
        if rows is not None and (not self.layout.is_shared or self._num_patient > _PATIENCE):
            return rows
        # Each is restored whole before what is too much is taken away.
        total = sum(needs.values()) + max(max(saved[entry] - needs[entry], 0) for entry in needs)
        if self.layout.is_shared and total <= self.layout.num_tokens:
            return self.layout
        return Layout(self._max_rows, _multiple(max(total, self._budget), _SHORTEST_ROW), is_shared=True)

    def _suitable_rows(self, num_entries: int, longest: int) -> Layout | None:
        now = self.layout
        if not now.is_shared and num_entries <= now.num_rows and longest <= now.num_tokens:
            return now
        fewest = _power_of_2(num_entries)
        for num_rows in (fewest,) if now.is_shared else (max(now.num_rows, fewest), fewest):
            limit = MAX_CELLS * self._budget // num_rows // _SHORTEST_ROW * _SHORTEST_ROW
            if longest <= limit:
                return Layout(num_rows, min(limit, _power_of_2(longest + _SHORTEST_ROW // 2, _SHORTEST_ROW)))
        return None

    def _change(self, layout: Layout) -> None:
        """Everything is saved, so nothing is lost when the other context cannot be made. There are never two."""
        for entry in tuple(self._row_of):
            self._save(entry)
        self._library.free(self._context)
        self._context = None
        self._context = self._make_context(layout)
        self.num_contexts += 1
        self.layout, self._num_patient = layout, 0

    def _window(self, needs: Mapping[CacheEntry, int]) -> range:
        """Rows next to each other for all of `needs`, so that as little as can be has to move."""

        def tokens_moved(first: int) -> int:
            rows = range(first, first + len(needs))
            out = sum(
                self._rows[row].num_computed for row in rows if row in self._rows and self._rows[row] not in needs
            )
            return out + sum(entry.num_computed for entry in needs if self._row_of.get(entry) not in rows)

        first = min(range(self.layout.num_rows - len(needs) + 1), key=tokens_moved)
        return range(first, first + len(needs))

    def _state(self, entry: CacheEntry) -> _Saved:
        """A copy of what is in its row.

        llama.cpp writes a cache as its number of rows and then, row by row, the number of cells and what is in them;
        it reads only what was written from as many rows. All rows but this one are written as empty.
        """
        row = self._row_of[entry]
        whole, windowed = (
            self._library.state_seq_get_size_ext(self.context, row, part) for part in (WHOLE_STATE, WINDOWED_STATE)
        )
        state = np.empty(whole, np.uint8)
        if self._library.state_seq_get_data(self.context, state.ctypes.data, whole, row) != whole:
            raise RuntimeError(f"llama.cpp did not give the state of row {row}")
        header, caches = state[:_HEADER_BYTES], [state[_HEADER_BYTES:]]
        if windowed != whole:
            caches = [
                state[_HEADER_BYTES : whole - windowed + _HEADER_BYTES],
                state[whole - windowed + _HEADER_BYTES :],
            ]
        num_rows, index = (1, 0) if self.layout.is_shared else (self.layout.num_rows, row)
        if any(cache[:4].view(np.uint32)[0] != num_rows for cache in caches):
            raise RuntimeError("llama.cpp writes its state in another way than is known here")
        cells = tuple(cache[4 + 4 * index : cache.size - 4 * (num_rows - 1 - index)] for cache in caches)
        return _Saved(header, cells, entry.num_computed, entry.num_computed)

    def _save(self, entry: CacheEntry) -> None:
        """Out of its row, if it is in one."""
        if entry in self._row_of:
            if entry.num_computed:
                self._saved[entry] = self._state(entry)
            self._vacate(entry)

    def _restore(self, entry: CacheEntry, row: int) -> None:
        saved = self._saved.get(entry)
        if saved is not None:
            num_rows = 1 if self.layout.is_shared else self.layout.num_rows
            first, others = np.array([num_rows], np.uint32).view(np.uint8), np.zeros(4 * (num_rows - 1), np.uint8)
            caches = [part for cells in saved.cells for part in (first, cells, others)]
            state = np.concatenate([saved.header, *caches])
            if self._library.state_seq_set_data(self.context, state.ctypes.data, state.size, row) != state.size:
                raise RuntimeError(f"llama.cpp did not take the state of {saved.num_tokens} tokens into row {row}")
            self._remove(row, saved.num_wanted)
            del self._saved[entry]
        self._rows[row] = entry
        self._row_of[entry] = row

    def _vacate(self, entry: CacheEntry) -> None:
        self._placed = {}
        row = self._row_of.pop(entry)
        del self._rows[row]
        self._remove(row, _ALL)

    def _remove(self, row: int, num_kept: int) -> None:
        """Forget the row's tokens from that position on; `_ALL` forgets every one."""
        memory = self._library.get_memory(self.context)
        self._library.memory_seq_rm(memory, row, num_kept, _ALL)


def _power_of_2(at_least: int, unit: int = 1) -> int:
    """The smallest of unit, 2 unit, 4 unit, ... that is no smaller."""
    return unit << max(-(-at_least // unit) - 1, 0).bit_length()


def _multiple(at_least: int, unit: int) -> int:
    return -(-at_least // unit) * unit
