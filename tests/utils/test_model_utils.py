import pytest

from mini_claude.types import LoadOptions
from mini_claude.utils.model_utils import prefers_llama_cpp


@pytest.mark.parametrize(
    ("options", "gpu", "expected"),
    [
        (LoadOptions(engine="auto"), False, True),
        (LoadOptions(engine="auto"), True, False),
        (LoadOptions(engine="auto", device="cpu"), True, True),
        (LoadOptions(engine="auto", device="cuda:0"), False, False),
        (LoadOptions(engine="auto", dtype="bfloat16"), False, False),
        (LoadOptions(engine="auto", quantization="int8"), False, False),
        (LoadOptions(engine="llama_cpp"), True, True),
        (LoadOptions(engine="torch"), False, False),
    ],
)
def test_llama_cpp_serves_where_nothing_asks_for_torch(options: LoadOptions, gpu: bool, expected: bool) -> None:
    assert prefers_llama_cpp(options, gpu=gpu) is expected
