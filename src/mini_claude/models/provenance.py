"""Who wrote which character of a rendered conversation: the template, the user or the assistant.

A template mixes its own text with the messages' contents, and afterwards both look alike. So the contents are
rendered with invisible marks at their edges, characters that Unicode reserves and that no content here uses:

    <|im_start|>user\n⟨Hi⟩<|im_end|>\n<|im_start|>assistant\n⟪Hello⟫<|im_end|>\n

Without its marks this must be what the template makes of the messages as they are; then the marks are trusted. A
template that trims or searches contents may see marks where it expects something else, which is why there are
three ways to place them. Should a template cut marks off, a control token in a content is still none: it has a
mark in its middle.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import Final

from mini_claude.errors import InvalidRequest, UnsupportedRole
from mini_claude.models.chat_template import ChatTemplate, TemplateRefusal
from mini_claude.types import Message

# Noncharacters first; the private use plane stands in where a content uses those.
_MARK_CANDIDATES: Final = (*range(0xFDD0, 0xFDF0), *range(0x100000, 0x10FFFE))


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch of rendered text. Control tokens are recognised only in `scaffold`; `answer` is what the assistant
    says, which can hold scaffold too: the <think> tags that a template puts around a part of an answer."""

    text: str
    scaffold: bool
    answer: bool


@dataclass(frozen=True, slots=True)
class _Marks:
    """Pairs that open and close a user's or system's content, an answer, and each further piece of an answer."""

    content: str
    answer: str
    piece: str
    splitting: str  # stands alone, inside of control tokens

    @property
    def pairs(self) -> str:
        return self.content + self.answer + self.piece


class Provenance:
    """Renders conversations with one template and tells their characters apart."""

    def __init__(self, template: ChatTemplate, control_tokens: Iterable[str], special_tokens: Iterable[str]) -> None:
        """`special_tokens`, some of `control_tokens`, are never the template's when they stand in a content; others
        are where the template searches answers for them, as for </think>."""
        self._template = template
        self._control_tokens = sorted(control_tokens, key=len, reverse=True)
        special = list(special_tokens)
        searched = [s for s in template.looked_for if not any(token in s for token in special)]
        self._searched = "|".join(map(re.escape, sorted(searched, key=len, reverse=True)))
        self._prompt, self._generation_prompt = self._probe()

    def _probe(self) -> tuple[str, str]:
        """A rendered prompt and, of it, the part that asks for an answer."""
        question = [{"role": "user", "content": "x"}]
        try:
            prompt = self._template.render(question, add_generation_prompt=True)
            return prompt, prompt.removeprefix(self._template.render(question, add_generation_prompt=False))
        except InvalidRequest:
            return "", ""

    def runs(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> list[Run]:
        """The rendered conversation in stretches of one origin each, empty ones left out.

        Raises `UnsupportedRole` or `InvalidRequest` as the template refuses the conversation.
        """
        now = datetime.now().astimezone()

        def render(contents: Sequence[str]) -> str:
            pairs = [{"role": m.role, "content": content} for m, content in zip(messages, contents, strict=True)]
            return self._template.render(pairs, add_generation_prompt=add_generation_prompt, now=now)

        marks = _unused_marks(messages)
        spelled = tokens_in("\0".join(message.content for message in messages), self._control_tokens)
        try:
            plain = render([message.content for message in messages])
        except TemplateRefusal as refusal:
            raise self._explain(refusal, messages, add_generation_prompt) from refusal
        for place in (_mark_whole, _mark_core, self._mark_pieces):
            marked = render([place(message, spelled, marks) for message in messages])
            unmarked = marked.translate({ord(mark): None for mark in marks.pairs + marks.splitting})
            if unmarked == plain and _is_paired(marked, marks):
                break
        else:
            # None of the three suits this template. It is rendered with marks all the same: text whose origin is
            # not clear counts as content, so the worst that can happen is a control token spelled out.
            marked = render([_mark_core(message, spelled, marks) for message in messages])
        return self._with_leading_spaces(self._parse(marked, marks))

    def _explain(
        self, refusal: TemplateRefusal, messages: Sequence[Message], add_generation_prompt: bool
    ) -> InvalidRequest:
        """`UnsupportedRole` where the conversation would do without its system message, else the refusal itself."""
        rest = [{"role": m.role, "content": m.content} for m in messages if m.role != "system"]
        if not rest or len(rest) == len(messages):
            return refusal
        try:
            self._template.render(rest, add_generation_prompt=add_generation_prompt)
        except InvalidRequest:
            return refusal
        return UnsupportedRole(
            "This model has no system role; put the instructions into the first user message.", param="messages"
        )

    def _mark_pieces(self, message: Message, spelled: Sequence[str], marks: _Marks) -> str:
        """Mark what lies between the strings that the template searches answers for; these stay the template's."""
        if message.role != "assistant" or not self._searched:
            return _mark_core(message, spelled, marks)
        pieces = re.split(f"({self._searched})", message.content)
        contents = [_split_tokens(piece, spelled, marks) for piece in pieces[::2]]
        pieces[::2] = [_wrap_core(contents[0], marks.answer), *(_wrap_core(c, marks.piece) for c in contents[1:])]
        return "".join(pieces)

    def _parse(self, marked: str, marks: _Marks) -> list[Run]:
        opening, closing = marks.pairs[::2], marks.pairs[1::2]
        pieces = [closing[0], *re.split(f"([{marks.pairs}])", marked), opening[0]]  # mark, text, mark, ..., text, mark
        runs: list[Run] = []
        for before, text, after in zip(pieces[::2], pieces[1::2], pieces[2::2], strict=False):
            scaffold = before in closing and after in opening
            answer = before + after in (marks.answer, marks.piece)
            if scaffold and after == marks.piece[0]:
                # Text of the template inside of an answer: all since the answer's last piece or, where its first
                # pieces were taken out or rewritten, since the generation prompt.
                header, text = ("", text) if before != marks.content[1] and runs else self._split_header(text)
                runs.append(Run(header, scaffold=True, answer=False))
                answer = True
            runs.append(Run(text, scaffold, answer))
        parts = (replace(run, text=text) for run in runs for text in run.text.split(marks.splitting))
        return [run for run in parts if run.text or run.answer]

    def _split_header(self, text: str) -> tuple[str, str]:
        if not self._generation_prompt or self._generation_prompt not in text:
            return text, ""
        start = text.rindex(self._generation_prompt) + len(self._generation_prompt)
        return text[:start], text[start:]

    def _with_leading_spaces(self, runs: list[Run]) -> list[Run]:
        """Give to each answer the space that the template puts before it.

        Tokenizers join a space to the word after it, so unless the generation prompt ends with the space, the model
        itself will say it.
        """
        if self._prompt.endswith(" "):
            return runs
        for i, (run, following) in enumerate(pairwise(runs)):
            if run.scaffold and not run.answer and following.answer and run.text.endswith(" "):
                runs[i] = replace(run, text=run.text[:-1])
                runs[i + 1] = replace(following, text=" " + following.text)
        return runs


def _unused_marks(messages: Sequence[Message]) -> _Marks:
    used = set().union(*(message.content for message in messages))
    free = (chr(point) for point in _MARK_CANDIDATES if chr(point) not in used)
    found = [mark for _, mark in zip(range(7), free, strict=False)]
    if len(found) < 7:
        raise InvalidRequest("The messages use all of Unicode's private characters; leave some out.", param="messages")
    return _Marks(found[0] + found[1], found[2] + found[3], found[4] + found[5], found[6])


def _pair(message: Message, marks: _Marks) -> str:
    return marks.answer if message.role == "assistant" else marks.content


def tokens_in(text: str, tokens: Iterable[str]) -> list[str]:
    """Those of `tokens` that `text` spells, in their order. Some models have thousands of them."""
    begins = {text[i : i + 2] for i in range(len(text))} | set(text)
    return [token for token in tokens if token[:2] in begins and token in text]


def _split_tokens(content: str, spelled: Sequence[str], marks: _Marks) -> str:
    for token in spelled:
        # A lookahead also finds occurrences that overlap.
        content = re.sub(f"{re.escape(token[0])}(?={re.escape(token[1:])})", token[0] + marks.splitting, content)
    return content


def _mark_whole(message: Message, spelled: Sequence[str], marks: _Marks) -> str:
    pair = _pair(message, marks)
    return f"{pair[0]}{_split_tokens(message.content, spelled, marks)}{pair[1]}"


def _mark_core(message: Message, spelled: Sequence[str], marks: _Marks) -> str:
    """Leave the whitespace around a content outside, for templates that trim it."""
    content = _split_tokens(message.content, spelled, marks)
    return _wrap_core(content, _pair(message, marks)) if content.strip() else content


def _wrap_core(text: str, pair: str) -> str:
    core = text.strip()
    start = text.index(core)
    return f"{text[:start]}{pair[0]}{core}{pair[1]}{text[start + len(core) :]}"


def _is_paired(marked: str, marks: _Marks) -> bool:
    """Whether every opening mark is followed by its closing mark."""
    found = "".join(re.findall(f"[{marks.pairs}]", marked))
    return re.sub(f"{marks.content}|{marks.answer}|{marks.piece}", "", found) == ""
