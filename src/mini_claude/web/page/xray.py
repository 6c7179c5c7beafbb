"""The X-ray tab: for people who want to see how an answer comes about, token by token."""

from collections.abc import AsyncIterator
from typing import Any, Final

import gradio as gr

from mini_claude.errors import InvalidRequest
from mini_claude.services.services import Services
from mini_claude.services.xray import Xray
from mini_claude.types import Message, SamplingParams
from mini_claude.web.page.conversation import shown_path
from mini_claude.web.page.visitor import event, stream, visitor
from mini_claude.web.page.xray_view import candidates_html, prompt_html, reply_html, stages_html, summary_html
from mini_claude.web.schemas.xray import XrayRequest

STATE_SECONDS: Final = 3600
PREVIEW_CHARACTERS: Final = 60
_QUIET: Final[dict[str, Any]] = {"show_progress": "hidden", "api_visibility": "private"}
_CLICK_PIECE: Final = """
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-index]');
  if (button) trigger('select', {index: Number(button.dataset.index), value: button.dataset.index});
});"""
_CLICK_CANDIDATE: Final = """
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-token]');
  if (button) trigger('select', {index: Number(button.dataset.token), value: button.dataset.token});
});"""
_INTRO: Final = (
    "A language model writes one *token* at a time: a piece of a word with a number. For each place it gives every "
    "token it knows a chance; the settings then cut and bend these chances, and one token is drawn. Here you can "
    "watch it."
)

Update = dict[gr.blocks.Block, Any]


class XrayTab:
    """`here` is the chat's note of which conversation it shows."""

    def __init__(self, services: Services, here: gr.BrowserState, tab: gr.Tab) -> None:
        self._services = services
        gr.Markdown(_INTRO)
        with gr.Row():
            self.question = gr.Textbox(
                label="Ask something new", value="Name the capital of France.", lines=2, elem_id="xray-question"
            )
            self.reply = gr.Dropdown(
                [],
                label="or look into an answer of your chat",
                info="Those of the conversation that is open under Chat.",
                elem_id="xray-reply",
            )
        self.model = gr.Dropdown([], label="Model or adapter", elem_id="xray-model")
        with gr.Row():
            temperature = gr.Slider(0, 2, 0.2, step=0.05, label="Temperature")
            top_p = gr.Slider(0, 1, 0.9, step=0.01, label="Top p")
            top_k = gr.Slider(0, 200, 40, step=1, label="Top k")
            length = gr.Slider(1, 512, 48, step=1, label="Longest answer")
        with gr.Row():
            self.ask = gr.Button("Answer and record", variant="primary", elem_id="xray-ask")
            self.look = gr.Button("Look into the chosen answer", elem_id="xray-look")
        self.state = gr.State(None, time_to_live=STATE_SECONDS)
        self.place = gr.State(0)
        self.summary = gr.HTML("", elem_id="xray-summary")
        with gr.Column(visible=False) as self.result:
            gr.Markdown("### The answer\nThe more colour, the surer the model was. Click a token.")
            self.tokens = gr.HTML("", js_on_load=_CLICK_PIECE, elem_id="xray-tokens")
            self.candidates = gr.HTML("", js_on_load=_CLICK_CANDIDATE, elem_id="xray-candidates")
            gr.Markdown("### What the model was given\nControl tokens, which nobody can type, are framed.")
            self.prompt = gr.HTML("", elem_id="xray-prompt")
            gr.Markdown("### Where the time went")
            self.stages = gr.HTML("", elem_id="xray-stages")
        self._settings = [temperature, top_p, top_k, length]
        self._outputs: list[gr.blocks.Block] = [
            *(self.state, self.place, self.summary, self.result, self.tokens, self.candidates, self.prompt, self.stages)
        ]
        busy: dict[str, Any] = {"show_progress": "minimal", "show_progress_on": self.summary}
        private: dict[str, Any] = {"api_visibility": "private"}
        self.ask.click(self._ask, [self.question, self.model, *self._settings], self._outputs, **busy, **private)
        self.look.click(self._look, [self.reply, *self._settings], self._outputs, **busy, **private)
        self.tokens.select(self._choose, self.state, [self.place, self.tokens, self.candidates], **_QUIET)
        self.candidates.select(
            self._continue, [self.state, self.place, *self._settings], self._outputs, **busy, **private
        )
        tab.select(self._list, here, [self.reply, self.model], **_QUIET)

    @event
    async def _list(self, request: gr.Request, here: dict[str, Any]) -> tuple[gr.Dropdown, gr.Dropdown]:
        """The chat's answers and the models, each time the tab opens."""
        caller = visitor(request)
        choices: list[tuple[str, str]] = []
        if here.get("session"):
            conversation = await self._services.chat.get(caller, here["session"])
            choices = [
                (" ".join(turn.content.split())[:PREVIEW_CHARACTERS], turn.id)
                for turn in shown_path(conversation)
                if turn.role == "assistant" and turn.content and turn.status != "running"
            ]
        models = [info.name for info in await self._services.models.list(caller)]
        last = choices[-1][1] if choices else None
        first = await self._services.models.first_choice(caller)
        return gr.Dropdown(choices, value=last), gr.Dropdown(models, value=first)

    @stream
    async def _ask(
        self, request: gr.Request, question: str, model: str | None, *settings: Any
    ) -> AsyncIterator[Update]:
        caller = visitor(request)
        if not question.strip():
            raise InvalidRequest("Write a question first.")
        message = Message("user", question)
        source = {"messages": (message,), "model": model}
        yield {self.summary: '<p class="facts">Answering …</p>'}
        made = await self._services.xray.of_messages(caller, model, (message,), _params(settings))
        yield self._show(made, source)

    @event
    async def _look(self, request: gr.Request, reply_id: str | None, *settings: Any) -> Update:
        if not reply_id:
            raise InvalidRequest("Choose an answer of your chat first; it needs a conversation with one.")
        xray = await self._services.xray.of_reply(visitor(request), reply_id, _params(settings))
        return self._show(xray, {"reply_id": reply_id})

    @event
    async def _choose(self, state: dict[str, Any] | None, chosen: gr.SelectData) -> tuple[int, str, str]:
        xray, index = _xray(state), int(chosen.value)
        return index, reply_html(xray, index), candidates_html(xray, index)

    @event
    async def _continue(
        self, request: gr.Request, chosen: gr.SelectData, state: dict[str, Any] | None, place: int, *settings: Any
    ) -> Update:
        """Answer again: the tokens before the place, the candidate, and then whatever follows."""
        xray, params = _xray(state), _params(settings)
        prefix = [*(token.token_id for token in xray.tokens[:place]), int(chosen.value)]
        source = (state or {})["source"]
        if "reply_id" in source:
            made = await self._services.xray.of_reply(
                visitor(request), source["reply_id"], params, prefix_token_ids=prefix
            )
        else:
            made = await self._services.xray.of_messages(
                visitor(request), source["model"], source["messages"], params, prefix_token_ids=prefix
            )
        return self._show(made, source, place, chosen=True)

    def _show(self, xray: Xray, source: dict[str, Any], place: int = 0, *, chosen: bool = False) -> Update:
        place = min(place, max(len(xray.tokens) - 1, 0))
        return {
            self.state: {"xray": xray, "source": source},
            self.place: place,
            self.summary: summary_html(xray, chosen=chosen),
            self.result: gr.Column(visible=True),
            self.tokens: reply_html(xray, place),
            self.candidates: candidates_html(xray, place) if xray.tokens else "",
            self.prompt: prompt_html(xray),
            self.stages: stages_html(xray),
        }


def _xray(state: dict[str, Any] | None) -> Xray:
    if state is None:
        raise InvalidRequest("This X-ray is too old: make it again.")
    xray: Xray = state["xray"]
    return xray


def _params(settings: tuple[Any, ...]) -> SamplingParams:
    temperature, top_p, top_k, length = settings
    return XrayRequest(
        reply_id="unused", temperature=float(temperature), top_p=float(top_p), top_k=int(top_k), max_tokens=int(length)
    ).sampling_params()
