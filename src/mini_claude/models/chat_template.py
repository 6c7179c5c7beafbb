"""Chat templates: programs that come with a model, so they run in a sandbox, for a second at most.

A template is Jinja2 and turns messages into text. It may loop and compute, but it is a stranger's code: attributes
that lead out of the sandbox are closed (Jinja's ImmutableSandboxedEnvironment), every loop looks at the clock, and
operations that could make something huge from something small are missing or draw on a budget.
"""

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mini_claude.errors import InvalidRequest, ModelLoadError

TIME_LIMIT: Final = 1.0  # seconds for one rendering
_TEXT_BUDGET: Final = 1 << 28  # characters that one rendering may make, results in between included
_MAX_BITS: Final = 256  # of any integer
_FILTERS: Final = (
    *("abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "groupby", "int", "items", "last"),
    *("length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "safe", "select"),
    *("selectattr", "sort", "string", "title", "trim", "unique", "upper"),
)
_WIDE_METHODS: Final = frozenset(
    {"center", "encode", "expandtabs", "format", "format_map", "ljust", "rjust", "translate", "zfill"}
)


@dataclass
class _Budget:
    """What is left to the rendering under way."""

    deadline: float
    text: int = _TEXT_BUDGET

    def spend(self, size: int) -> None:
        self.text -= size
        if self.text < 0:
            raise _Overrun("it makes too much text")


_budget: ContextVar[_Budget] = ContextVar("budget")


class TemplateRefusal(InvalidRequest):
    """The template called raise_exception: it does not accept this conversation."""


class _Overrun(SecurityError):
    """The template took too long or made something too large."""


class ChatTemplate:
    """A compiled template with the variables that the tokenizer gives to it (bos_token, ...)."""

    def __init__(self, source: str, variables: Mapping[str, Any]) -> None:
        """Raises `ModelLoadError` where the source is no valid Jinja."""
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
        self._variables = dict(variables)
        try:
            self._template = environment.from_string(source)
            self.looked_for = _looked_for(environment.parse(source))
        except (jinja2.TemplateError, RecursionError) as error:
            raise ModelLoadError(f"The model's chat template is not valid Jinja: {error}.") from error

    def render(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool, now: datetime | None = None
    ) -> str:
        """The conversation as text.

        Raises `TemplateRefusal` with the template's own words, `InvalidRequest` where it fails or overruns.
        """
        moment = now or datetime.now().astimezone()
        outer = _budget.set(_Budget(time.monotonic() + TIME_LIMIT))
        try:
            return self._template.render(
                self._variables,
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                strftime_now=lambda pattern: moment.strftime(pattern[:100]),
            )
        except TemplateRefusal:
            raise
        except Exception as error:  # whatever a stranger's program may do wrong
            raise InvalidRequest(
                f"The model's chat template failed on this conversation: {error}.", code="chat_template_error"
            ) from error
        finally:
            _budget.reset(outer)


def _looked_for(tree: nodes.Template) -> frozenset[str]:
    """String constants that the template searches contents for: `'</think>' in x`, `x.split('</think>')`.

    Words such as role names are left out.
    """
    tests = tree.find_all((nodes.Call, nodes.Compare))
    strings = {const.value for test in tests for const in test.find_all(nodes.Const) if isinstance(const.value, str)}
    return frozenset(string for string in strings if string.strip() and not string.isalnum())


def _raise_exception(message: object) -> None:
    raise TemplateRefusal(f"The model's chat template refuses this conversation: {message}", param="messages")


def _check_deadline() -> None:
    if time.monotonic() > _budget.get().deadline:
        raise _Overrun(f"it ran for more than {TIME_LIMIT:g} s")


def _bounded(value: Any) -> Any:
    """The value itself, paid for."""
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise _Overrun("it computes with too large numbers")
    if isinstance(value, (str, list, tuple)):
        _budget.get().spend(_size(value))
    return value


def _size(value: str | list[Any] | tuple[Any, ...]) -> int:
    return len(value) if isinstance(value, str) else 8 * len(value)


def _concat(parts: Iterable[Any]) -> str:
    """Join a rendering's pieces; each is paid for before the whole is made."""
    budget = _budget.get()
    pieces = []
    for part in parts:
        pieces.append(str(part))
        budget.spend(len(pieces[-1]))
    return "".join(pieces)


def _join(value: Iterable[Any], separator: str = "") -> str:
    pieces = [str(part) for part in value]
    _budget.get().spend(sum(map(len, pieces)) + len(separator) * len(pieces))
    return str(separator).join(pieces)


def _replace(value: Any, old: str, new: str, count: int = -1) -> str:
    text = str(value)
    found = min(text.count(old), count) if count >= 0 else text.count(old)
    _budget.get().spend(len(text) + found * len(new))
    return text.replace(old, new, found)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Unlike Jinja's own tojson it does not escape HTML; models are trained on this spelling."""
    indent = None if indent is None else min(int(indent), 8)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks answers for other trainers; here it is transparent."""

    tags = {"generation"}  # noqa: RUF012  (Jinja declares it as an instance attribute)

    def parse(self, parser: jinja2.parser.Parser) -> list[nodes.Node]:
        """The statements inside."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _BoundedConcat(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802  (Jinja's visitor naming)
        """Send `a ~ b`, which Jinja compiles to a plain join, through our bounds."""
        self.write("environment.concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Sandbox(ImmutableSandboxedEnvironment):
    code_generator_class = _BoundedConcat
    intercepted_binops = frozenset({"+", "*", "**", "%"})
    concat = staticmethod(_concat)
    check_deadline = staticmethod(_check_deadline)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters = {name: self.filters[name] for name in _FILTERS}
        self.filters |= {"tojson": _to_json, "join": _join, "replace": _replace}
        self.globals = {
            "range": self.globals["range"],  # Jinja bounds it to 100,000
            "dict": self.globals["dict"],
            "namespace": self.globals["namespace"],
            "raise_exception": _raise_exception,
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Make every loop and every macro look at the clock: nothing else in a template can run for long."""
        tree = super()._parse(source, name, filename)
        for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
            assert isinstance(node, (nodes.For, nodes.Macro, nodes.CallBlock))
            check = nodes.Call(nodes.EnvironmentAttribute("check_deadline"), [], [], None, None)
            node.body.insert(0, nodes.ExprStmt(check).set_lineno(node.lineno))
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`+`, `*`, `**` and `%` without what makes huge results."""
        if operator == "**":
            raise _Overrun("powers are not supported")
        if operator == "%" and isinstance(left, str) and re.search(r"%[^a-zA-Z%]*(\d{4}|\*)", left):
            raise _Overrun("it formats with too large a width")
        if operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(sequence, (str, list, tuple)) and isinstance(times, int):
                    _budget.get().spend(_size(sequence) * max(times, 0))
        return _bounded(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> None:
        """Jinja would make str.format safe but not bound it; without a wrapper it is refused below."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Also closes the string methods that pad or format to any width."""
        return attr not in _WIDE_METHODS and super().is_safe_attribute(obj, attr, value)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Jinja's call, with the two string methods that can multiply a text bounded."""
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            if __obj.__name__ == "join":
                __obj, args = _join, (*args, owner)
            elif __obj.__name__ == "replace":
                __obj, args = _replace, (owner, *args)
        return _bounded(super().call(__context, __obj, *args, **kwargs))
