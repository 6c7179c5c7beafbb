"""What llama.cpp is to read in one call, in arrays that are made once."""

import ctypes
from ctypes import POINTER, c_int8, c_int32

import numpy as np

from mini_claude.engine.llama_cpp_library import Batch


class BatchArrays:
    """The arrays behind a `Batch`, filled anew for each call."""

    def __init__(self, capacity: int) -> None:
        self._token_ids = np.zeros(capacity, np.int32)
        self._positions = np.zeros(capacity, np.int32)
        self._sequences = np.zeros(capacity, np.int32)
        self._is_wanted = np.zeros(capacity, np.int8)
        self._one_each = np.ones(capacity, np.int32)
        first = self._sequences.ctypes.data
        places = (ctypes.cast(place, POINTER(c_int32)) for place in range(first, first + 4 * capacity, 4))
        self._each_sequence = (POINTER(c_int32) * capacity)(*places)
        self._batch = Batch(
            0,
            self._token_ids.ctypes.data_as(POINTER(c_int32)),
            None,
            self._positions.ctypes.data_as(POINTER(c_int32)),
            self._one_each.ctypes.data_as(POINTER(c_int32)),
            self._each_sequence,
            self._is_wanted.ctypes.data_as(POINTER(c_int8)),
        )

    def fill(self, token_ids: list[int], positions: list[int], sequences: list[int], is_wanted: list[bool]) -> Batch:
        """Of each token what it is, where, in which row, and whether its logits are wanted. Valid until the next."""
        end = self._batch.n_tokens = len(token_ids)
        self._token_ids[:end] = token_ids  # each array at once: a slice of one costs a microsecond
        self._positions[:end] = positions
        self._sequences[:end] = sequences
        self._is_wanted[:end] = is_wanted
        return self._batch
