"""Two models answer one question side by side; which answer is better becomes a preference pair for training."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from html import escape
from typing import Any, Final

import gradio as gr

from mini_claude.data.records import Answer
from mini_claude.errors import InvalidRequest
from mini_claude.services.identity import Caller
from mini_claude.services.services import Services
from mini_claude.web.page.comparison import CHOSEN, LETTERS, Choice, Comparison, new_comparison
from mini_claude.web.page.contestant_panel import ContestantPanel
from mini_claude.web.page.conversation import safe_markdown
from mini_claude.web.page.proof import proof_of
from mini_claude.web.page.race import Contestant, start_race
from mini_claude.web.page.send_buttons import SEND, STOP
from mini_claude.web.page.visitor import event, stream, visitor

_QUIET: Final[dict[str, Any]] = {"show_progress": "hidden", "api_visibility": "private"}
_INTRODUCTION: Final = (
    "Ask two models the same question, or one model with two settings, and say which answer is better. "
    "Your choice is kept as an example that a model can be trained on."
)
_CHOICES: Final[dict[Choice, str]] = {
    "a": "A is better",
    "b": "B is better",
    "both_good": "Both good",
    "both_bad": "Both bad",
}
_VERDICTS: Final[dict[Choice, str]] = {
    "a": "Kept: A is better than B. It is one preference pair, ready for training.",
    "b": "Kept: B is better than A. It is one preference pair, ready for training.",
    "both_good": "Both good: nothing is kept, since there is nothing to prefer.",
    "both_bad": "Both bad: nothing is kept, since there is nothing to prefer.",
}

Update = dict[gr.blocks.Block, Any]


class CompareTab:
    """Built inside of a tab; `start` afterwards wires what happens when the page opens."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.comparison = gr.State(None)
        gr.Markdown(_INTRODUCTION)
        with gr.Row():
            self.first, self.second = ContestantPanel("first"), ContestantPanel("second")
        self.blind = gr.Checkbox(
            True,
            label="Blind",
            elem_id="compare-blind",
            info="Names stay hidden, and who is A is drawn by lot, until you have chosen.",
        )
        self.system = gr.Textbox(
            label="System prompt",
            lines=1,
            max_lines=6,
            max_length=20_000,
            elem_id="compare-system",
            info="Told to both before the question; may be empty.",
        )
        self.question = gr.Textbox(
            placeholder="Question (Enter sends, Shift+Enter starts a line)",
            label="Question",
            lines=1,
            max_lines=8,
            **SEND,
            elem_id="compare-question",
        )
        with gr.Row():
            self.titles, self.answers, self.proofs = zip(*(_answer_column(letter) for letter in LETTERS), strict=True)
        with gr.Row(elem_id="compare-choices"):
            self.buttons = {
                choice: gr.Button(label, interactive=False, min_width=120, elem_id=f"compare-{choice}")
                for choice, label in _CHOICES.items()
            }
        self.verdict = gr.HTML("", elem_id="compare-verdict")
        self._all: list[gr.blocks.Block] = [
            *(self.comparison, self.question, self.verdict),
            *(*self.titles, *self.answers, *self.proofs, *self.buttons.values()),
        ]
        self._wire()

    def start(self, page: gr.Blocks, tabs: gr.Tabs) -> None:
        """Names of models are looked up when the page opens, and when another tab is opened."""
        models = [self.first.model, self.second.model]
        page.load(self._names, models, models, **_QUIET)
        tabs.select(self._names, models, models, **_QUIET)

    def _wire(self) -> None:
        settings = [*self.first.inputs, *self.second.inputs]
        inputs = [self.question, self.system, self.blind, *settings]
        self.question.submit(self._ask, inputs, self._all, **_QUIET)
        self.question.stop(self._stop, self.comparison, None, **_QUIET)
        for choice, button in self.buttons.items():
            button.click(self._choose(choice), self.comparison, self._all, **_QUIET)

    @event
    async def _names(self, request: gr.Request, *chosen: str | None) -> list[gr.Dropdown]:
        caller = visitor(request)
        names = [info.name for info in await self._services.models.list(caller)]
        default = await self._services.models.first_choice(caller)
        return [gr.Dropdown(names, value=name if name in names else default) for name in chosen]

    @stream
    async def _ask(
        self, request: gr.Request, question: str, system: str, blind: bool, *settings: Any
    ) -> AsyncIterator[Update]:
        caller = visitor(request)
        half = len(self.first.inputs)
        contestants = [await self._exactly(caller, values) for values in (settings[:half], settings[half:])]
        comparison = new_comparison(question, system, contestants, blind=blind)
        yield await self._look(caller, comparison, running=True)
        try:
            comparison.race = await start_race(self._services.chat, caller, comparison.contestants, comparison.messages)
        except Exception:
            yield await self._look(caller, comparison, running=False)
            raise
        async for _ in comparison.race:
            yield self._texts(comparison)
        yield await self._look(caller, comparison, running=False)

    async def _exactly(self, caller: Caller, values: Sequence[Any]) -> Contestant:
        """The contestant with its version, so that what is asked is what is shown. Raises `NotFound`, `Forbidden`."""
        contestant = ContestantPanel.contestant(values)
        return replace(contestant, name=(await self._services.models.serving(caller, contestant.name)).name)

    @event
    async def _stop(self, request: gr.Request, comparison: Comparison | None) -> None:
        visitor(request)
        if comparison is not None and comparison.race is not None:
            comparison.race.abort()

    def _choose(self, choice: Choice) -> Callable[..., Awaitable[Update]]:
        @event
        async def choose(request: gr.Request, comparison: Comparison | None) -> Update:
            caller = visitor(request)
            if comparison is None:
                raise InvalidRequest("Ask a question first, then choose.")
            comparison.check_choice()
            if (best := CHOSEN.get(choice)) is not None:
                await self._keep(caller, comparison, best)
            comparison.choose(choice)
            return await self._look(caller, comparison, running=False)

        return choose

    async def _keep(self, caller: Caller, comparison: Comparison, best: int) -> None:
        answers = [
            Answer(contestant.name, text, cut=False)  # only whole ones can be judged
            for contestant, text in zip(comparison.contestants, comparison.texts, strict=True)
        ]
        await self._services.feedback.prefer(
            caller,
            messages=comparison.messages,
            chosen=answers[best],
            rejected=answers[1 - best],
            blind=comparison.blind,
        )

    # --- showing ---

    async def _look(self, caller: Caller, comparison: Comparison, *, running: bool) -> Update:
        ready = comparison.can_be_judged and comparison.choice is None
        update: Update = {
            self.comparison: comparison,
            self.question: gr.Textbox(**(STOP if running else SEND)),
            self.verdict: _verdict(comparison, running=running),
            **{button: gr.Button(interactive=ready) for button in self.buttons.values()},
            **self._texts(comparison),
        }
        for index, contestant in enumerate(comparison.contestants):
            name = f" · {escape(contestant.name)}" if comparison.shows_names else ""
            best = " ★" if comparison.preferred == index else ""
            update[self.titles[index]] = f"<h3>Answer {LETTERS[index]}{best}{name}</h3>"
            shown = comparison.shows_names and not running
            update[self.proofs[index]] = (
                await proof_of(self._services, caller, contestant.name, contestant.params) if shown else ""
            )
        return update

    def _texts(self, comparison: Comparison) -> Update:
        return {answer: safe_markdown(text) for answer, text in zip(self.answers, comparison.texts, strict=True)}


def _answer_column(letter: str) -> tuple[gr.HTML, gr.Markdown, gr.HTML]:
    with gr.Column(min_width=280):
        return (
            gr.HTML(f"<h3>Answer {letter}</h3>", elem_id=f"title-{letter.lower()}"),
            gr.Markdown(
                "",
                elem_id=f"answer-{letter.lower()}",
                container=True,
                min_height=120,
                sanitize_html=True,
                latex_delimiters=[],
            ),
            gr.HTML("", elem_id=f"proof-{letter.lower()}"),
        )


def _verdict(comparison: Comparison, *, running: bool) -> str:
    if running:
        return "<p class='facts'>Both are answering …</p>"
    if comparison.choice is not None:
        return f"<p class='facts' role='status'>{_VERDICTS[comparison.choice]}</p>"
    if comparison.race is None:
        return ""
    if comparison.can_be_judged:
        return "<p class='facts' role='status'>Which answer is better?</p>"
    errors = [answer.error for answer in comparison.race.answers if answer.error is not None]
    reason = errors[0] if errors else "Stopped before both answers were whole."
    return f"<p class='facts' role='status'>{escape(reason)} There is nothing to choose: ask again.</p>"
