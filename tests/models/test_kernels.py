"""Our kernels for llama.cpp, compiled alone: with each instruction set that this processor has, and in plain C++."""

import shutil
import subprocess
from pathlib import Path

import pytest

from mini_claude.models import native_llama_cpp
from mini_claude.models.native_llama_cpp import add_kernels, processor_flags

KERNELS = Path(native_llama_cpp.__file__).parent / "kernels"
TESTS = Path(__file__).parent / "kernels"
VECTORS = {
    "avx512_vnni": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma", "-mf16c"),
    "avx_vnni": ("-mavx2", "-mavxvnni", "-mfma", "-mf16c"),
    "plain": (f'-DMINI_CLAUDE_VECTORS="{TESTS / "plain_vectors.h"}"',),
}
REPACK = """#include "repack.h"
class tensor_traits_base : public ggml::cpu::tensor_traits {
};
static const ggml::cpu::tensor_traits * ggml_repack_get_optimal_repack_type(const struct ggml_tensor * cur) {
    // instance for Q1_0
}
"""
OPS = """#include "ops.h"
void ggml_compute_forward_flash_attn_ext(
        const ggml_compute_params * params,
        ggml_tensor * dst) {
                ggml_compute_forward_flash_attn_ext_f16(params, dst);
}
"""
CACHE_CLASS = """class llama_kv_cache {
    // pending stream copies that will be applied during the next update
};
"""
CACHE = """void llama_kv_cache::set_input_kq_mask(ggml_tensor * dst) {
    if (dst->type == GGML_TYPE_F16) {
    }
}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """llama.cpp's source, as far as the kernels go into it."""
    folder = tmp_path / "ggml/src/ggml-cpu"
    folder.mkdir(parents=True)
    (tmp_path / "src").mkdir()
    (tmp_path / "src/llama-kv-cache.h").write_text(CACHE_CLASS)
    (tmp_path / "src/llama-kv-cache.cpp").write_text(CACHE)
    (folder / "repack.cpp").write_text(REPACK)
    (folder / "ops.cpp").write_text(OPS)
    return folder


@pytest.mark.parametrize("kernel", ["attention", "vnni_matmul"])
@pytest.mark.parametrize("vectors", [name for name in VECTORS if name == "plain" or name in processor_flags()])
def test_a_kernel_computes_what_it_stands_for(kernel: str, vectors: str, tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    assert compiler is not None, "this test needs a C++ compiler: apt-get install g++"
    program = tmp_path / "test"
    options = ("-std=c++17", "-O1", "-w", "-pthread", "-I", str(KERNELS), *VECTORS[vectors])
    subprocess.run([compiler, *options, str(TESTS / f"{kernel}_test.cpp"), "-o", str(program)], check=True)
    told = subprocess.run([program], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout


def test_they_go_where_llama_cpp_chooses(tmp_path: Path, folder: Path) -> None:
    add_kernels(tmp_path)
    repack, ops = (folder / "repack.cpp").read_text(), (folder / "ops.cpp").read_text()
    assert repack.index('#include "vnni_matmul.h"') < repack.index("class tensor_traits_base")
    assert repack.index("GGML_TYPE_Q8_0") > repack.index("ggml_repack_get_optimal_repack_type")
    assert ops.index("mini_claude::attention(params, dst)") < ops.index("flash_attn_ext_f16(params, dst)")
    assert "positions_of_step;" in (tmp_path / "src/llama-kv-cache.h").read_text()
    cache = (tmp_path / "src/llama-kv-cache.cpp").read_text()
    assert cache.index("dst->extra = positions_of_step.data();") < cache.index("GGML_TYPE_F16")
    assert {file.name for file in folder.glob("*.h")} == {file.name for file in KERNELS.glob("*.h")}


def test_a_source_that_has_changed_there_is_left_as_it_is(tmp_path: Path, folder: Path) -> None:
    (folder / "ops.cpp").write_text(OPS.replace("flash_attn_ext_f16", "attention"))
    add_kernels(tmp_path)
    assert (folder / "repack.cpp").read_text() == REPACK
    assert not list(folder.glob("*.h"))
