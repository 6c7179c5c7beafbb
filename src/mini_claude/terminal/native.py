"""`mini-claude compile`: llama.cpp for the processor of this machine."""

from typing import Annotated

import typer
from rich.console import Console

from mini_claude.models.native_llama_cpp import compile_llama_cpp, compiling_pays

console = Console()


def compile_native(
    *,
    check: Annotated[bool, typer.Option("--check", help="Compile nothing; exit with 0 where it would pay.")] = False,
) -> None:
    """Compile llama.cpp for this processor (a minute or two; needs a C++ compiler): more speed on newer ones."""
    if check:
        raise typer.Exit(0 if compiling_pays() else 1)
    path = compile_llama_cpp()
    console.print(f"Compiled: {path}", markup=False, soft_wrap=True)
    console.print("Models that are loaded from now on use it; restart the server, or unload and load them.")
