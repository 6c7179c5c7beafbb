"""Arrays for GGUF files are written by Python, which notices a full disk."""

import errno
import io
from pathlib import Path

import numpy as np
import pytest

from mini_claude.models.gguf_array import GGUFArray


class FullFile(io.BytesIO):
    def write(self, _data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_what_is_written_is_what_numpy_would_write(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float16).reshape(3, 4)
    for number, each in enumerate((values, values.T, values[:, ::2])):
        with (tmp_path / str(number)).open("wb") as file:
            GGUFArray.of(each).tofile(file)
        assert (tmp_path / str(number)).read_bytes() == each.tobytes()


@pytest.mark.parametrize("num_values", [1, 100_000])
def test_a_full_disk_is_noticed_whatever_the_size(num_values: int) -> None:
    with pytest.raises(OSError, match="No space") as caught:
        GGUFArray.of(np.zeros(num_values)).tofile(FullFile())
    assert caught.value.errno == errno.ENOSPC
