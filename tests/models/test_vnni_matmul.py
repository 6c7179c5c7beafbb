"""Our kernel for llama.cpp, compiled alone: with each instruction set that this processor has, and in plain C++."""

import shutil
import subprocess
from pathlib import Path

import pytest

from mini_claude.models import native_llama_cpp
from mini_claude.models.native_llama_cpp import add_kernel, processor_flags

KERNELS = Path(native_llama_cpp.__file__).parent / "kernels"
TEST = Path(__file__).parent / "kernels"
VECTORS = {
    "avx512_vnni": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni", "-mfma", "-mf16c"),
    "avx_vnni": ("-mavx2", "-mavxvnni", "-mfma", "-mf16c"),
    "plain": (f'-DMINI_CLAUDE_VECTORS="{TEST / "plain_vectors.h"}"',),
}
REPACK = """#include "repack.h"
class tensor_traits_base : public ggml::cpu::tensor_traits {
};
static const ggml::cpu::tensor_traits * ggml_repack_get_optimal_repack_type(const struct ggml_tensor * cur) {
    // instance for Q1_0
}
"""


@pytest.mark.parametrize("vectors", [name for name in VECTORS if name == "plain" or name in processor_flags()])
def test_it_gives_the_sum_of_products_whatever_the_number_of_tokens(vectors: str, tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    assert compiler is not None, "this test needs a C++ compiler: apt-get install g++"
    program = tmp_path / "test"
    options = ("-std=c++17", "-O1", "-I", str(KERNELS), *VECTORS[vectors])
    subprocess.run([compiler, *options, str(TEST / "vnni_matmul_test.cpp"), "-o", str(program)], check=True)
    told = subprocess.run([program], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout


def test_it_goes_into_the_file_in_which_llama_cpp_chooses(tmp_path: Path) -> None:
    file = tmp_path / "ggml/src/ggml-cpu/repack.cpp"
    file.parent.mkdir(parents=True)
    file.write_text(REPACK)
    add_kernel(tmp_path)
    text = file.read_text()
    assert text.index('#include "vnni_matmul.h"') < text.index("class tensor_traits_base")
    assert text.index("GGML_TYPE_Q8_0") > text.index("ggml_repack_get_optimal_repack_type")
    assert (file.parent / "vnni_matmul.h").read_bytes() == (KERNELS / "vnni_matmul.h").read_bytes()


def test_a_source_that_has_changed_there_is_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "ggml/src/ggml-cpu/repack.cpp"
    file.parent.mkdir(parents=True)
    changed = REPACK.replace("tensor_traits_base", "traits_base")
    file.write_text(changed)
    add_kernel(tmp_path)
    assert file.read_text() == changed
