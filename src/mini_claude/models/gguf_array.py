"""Arrays as `gguf.GGUFWriter` is to be given them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


class GGUFArray(np.ndarray[Any, np.dtype[Any]]):
    """Goes to a file by the file's own `write`, so that a full disk is an `OSError` with its number.

    numpy's `tofile`, which the writer calls, has a buffer of its own. What is left in it at the end is lost without a
    word where there is no room: the last tensor of a file, if it is small.
    """

    @classmethod
    def of(cls, values: NDArray[Any]) -> "GGUFArray":
        """A view, or a copy where values do not lie one after another."""
        return np.ascontiguousarray(values).view(cls)

    def tofile(self, file: Any, *_: object) -> None:
        """Raises `OSError`."""
        file.write(self.data)
