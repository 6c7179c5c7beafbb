"""When a compiled llama.cpp is used, and that one which cannot be called takes nobody's place."""

import json
from pathlib import Path
from typing import Any

import pytest

from mini_claude.engine.llama_cpp_library import llama_cpp_library
from mini_claude.errors import ModelLoadError
from mini_claude.models import native_llama_cpp
from mini_claude.models.native_llama_cpp import LIBRARY, compile_source, compiling_pays, has_kernels, native_library

HERE = {"version": "1", "kernels": "new", "machine": "x86_64", "flags": ["avx2", "avx512_vnni"]}
BUILD = """
cmake_minimum_required(VERSION 3.14)
project(llama C)
add_library(llama SHARED llama.c)
set_target_properties(llama PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
"""


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_llama_cpp, "_made_for", lambda: HERE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "llama.cpp"


def made(folder: Path, **made_for: Any) -> None:
    folder.mkdir()
    (folder / LIBRARY).write_bytes(b"library")
    (folder / "made-for.json").write_text(json.dumps(HERE | made_for))


def test_without_a_compiled_library_there_is_none(folder: Path) -> None:
    assert native_library(folder) is None


@pytest.mark.parametrize("flags", [["avx2"], ["avx2", "avx512_vnni"]])
def test_it_is_used_where_the_processor_has_all_that_it_was_made_for(folder: Path, flags: list[str]) -> None:
    made(folder, flags=flags)
    assert native_library(folder) == folder / LIBRARY


@pytest.mark.parametrize(
    "other", [{"version": "2"}, {"kernels": "old"}, {"machine": "arm64"}, {"flags": ["avx2", "amx_int8"]}]
)
def test_it_is_not_used_on_another_processor_nor_with_another_version(folder: Path, other: dict[str, Any]) -> None:
    made(folder, **other)
    assert native_library(folder) is None


@pytest.mark.parametrize(
    ("flags", "compiler", "pays"),
    [
        (["avx2", "avx512_vnni"], "/usr/bin/c++", True),
        (["avx2", "avx_vnni"], "/usr/bin/c++", True),
        (["avx2"], "/usr/bin/c++", False),
        (["avx2", "avx512_vnni"], None, False),
    ],
)
def test_compiling_pays_where_the_processor_has_more_than_the_package_uses(
    folder: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], compiler: str | None, pays: bool
) -> None:
    monkeypatch.setattr(native_llama_cpp, "processor_flags", lambda: flags)
    monkeypatch.setattr("shutil.which", lambda _: compiler)
    assert compiling_pays(folder) == pays
    made(folder)
    assert not compiling_pays(folder)


def test_our_kernels_are_in_it_only_where_its_record_says_so(folder: Path) -> None:
    assert not has_kernels(folder)
    made(folder)
    assert not has_kernels(folder)
    (folder / "made-for.json").write_text(json.dumps(HERE | {"has_kernels": True}))
    assert has_kernels(folder)


def test_one_that_cannot_be_called_is_not_kept_and_the_one_before_stays(folder: Path, tmp_path: Path) -> None:
    made(folder)
    source = tmp_path / "source"
    source.mkdir()
    (source / "CMakeLists.txt").write_text(BUILD)
    (source / "llama.c").write_text("int llama_of_another_interface(void) { return 0; }\n")
    with pytest.raises(ModelLoadError, match="not compiled"):
        compile_source(source, folder)
    new = folder.with_name("llama.cpp.new")
    assert (new / LIBRARY).exists()  # it was compiled all the same
    assert not has_kernels(new)  # they did not fit into that source
    assert native_library(folder) == folder / LIBRARY
    assert (folder / LIBRARY).read_bytes() == b"library"


def test_the_packages_own_library_can_be_asked_for() -> None:
    assert "xllamacpp" in str(llama_cpp_library(native=False).path)
