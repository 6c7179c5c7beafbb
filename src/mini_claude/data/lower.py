"""Text in lower case, of every letter and not of ASCII's alone, whatever the database's locale."""

from typing import Any

from sqlalchemy import Text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class Lower(FunctionElement[str]):
    """`Lower(column)`, to be compared with what Python's `str.lower` gives."""

    name = "lower"
    type = Text()
    inherit_cache = True


@compiles(Lower)  # SQLite: Database gives each connection a function that does it
def _plain(element: Lower, compiler: SQLCompiler, **options: Any) -> str:
    return f"lower({compiler.process(element.clauses, **options)})"


@compiles(Lower, "postgresql")
def _by_unicode(element: Lower, compiler: SQLCompiler, **options: Any) -> str:
    return f'lower({compiler.process(element.clauses, **options)} COLLATE "und-x-icu")'
