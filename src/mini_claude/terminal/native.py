"""`mini-claude compile`: llama.cpp for the processor of this machine."""

from rich.console import Console

from mini_claude.models.native_llama_cpp import compile_llama_cpp

console = Console()


def compile_native() -> None:
    """Compile llama.cpp for this processor (some minutes; needs a C++ compiler): more speed on newer ones."""
    path = compile_llama_cpp()
    console.print(f"Compiled: {path}", markup=False, soft_wrap=True)
    console.print("Models that are loaded from now on use it; restart the server, or unload and load them.")
