"""What the chat shows of a conversation, at rest and while a reply is being written.

Everything is in the database: an event changes it through the services and shows it anew. What the browser keeps is
which conversation it shows and the ids of its turns, so that an event means the turn that the visitor saw.
"""

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import gradio as gr

from mini_claude.data.records import Conversation, Turn
from mini_claude.services.identity import Caller
from mini_claude.services.services import Services
from mini_claude.services.session_reply import SessionReply
from mini_claude.web.page.conversation import other_branches, shown_path
from mini_claude.web.page.facts import Speed, facts_of
from mini_claude.web.page.messages import Corrections, message_of, messages_of
from mini_claude.web.page.sampling_panel import SamplingPanel
from mini_claude.web.page.screens import StillShown
from mini_claude.web.page.send_buttons import SEND, STOP
from mini_claude.web.page.session_list import SessionList

FRAME_SECONDS: Final = 0.1  # between two looks of a reply that is being written
EMPTY: Final[dict[str, Any]] = {"session": None, "turns": []}
_PLACEHOLDER: Final = "### Ask something\nYour conversations stay on this machine."

Here = dict[str, Any]
Update = dict[gr.blocks.Block, Any]


@dataclass(frozen=True, slots=True)
class Look:
    """A conversation as it was at one moment: what each component shows of it, and what that was made of."""

    update: Update
    path: tuple[Turn, ...]
    corrections: Corrections
    context_lengths: Mapping[str, int | None]

    @property
    def running(self) -> Turn | None:
        """The reply that is being written."""
        return self.path[-1] if self.path and self.path[-1].status == "running" else None


class ChatView:
    """The chat's components, and their contents. `all` are those of `Look.update`; `around` those beside the chat."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.here = gr.BrowserState(EMPTY, storage_key="mini-claude-chat", secret="not-a-secret")  # noqa: S106
        self.sessions = SessionList(services)
        self.chatbot = gr.Chatbot(
            show_label=False,
            elem_id="chatbot",
            height="62vh",
            min_height=260,
            editable="all",
            buttons=["copy", "copy_all"],
            sanitize_html=True,
            allow_tags=False,
            latex_delimiters=[],
            placeholder=_PLACEHOLDER,
            layout="bubble",
            group_consecutive_messages=False,
        )
        self.facts = gr.HTML("", elem_id="facts")
        self.say = gr.Textbox(
            placeholder="Message (Enter sends, Shift+Enter starts a line)",
            label="Message",
            show_label=False,
            lines=1,
            max_lines=8,
            autofocus=True,
            **SEND,
            elem_id="say",
        )
        self.branches = gr.Dropdown([], label="Other versions of this conversation", visible=False, elem_id="branches")
        self.panel = SamplingPanel()
        self.around: list[gr.blocks.Block] = [
            *(self.facts, self.branches, self.panel.model, self.panel.system),
            *(self.sessions.list, self.sessions.title, self.sessions.confirm, *self.sessions.tools),
        ]
        self.all: list[gr.blocks.Block] = [self.here, self.chatbot, self.say, *self.around]
        # An event that gave no update at all would empty every component.
        self.nothing: Update = {self.facts: gr.skip()}

    async def look(self, caller: Caller, session_id: str | None, query: str) -> Look:
        """The conversation, or none yet; `query` is what the list of conversations is searched for.

        Raises `NotFound` for one that is gone, or another's.
        """
        conversation: Conversation | None = None
        path: tuple[Turn, ...] = ()
        corrections = Corrections({})
        if session_id is not None:
            conversation = await self._services.chat.get(caller, session_id)
            path = shown_path(conversation)
            corrections = Corrections(await self._services.feedback.of_session(caller, session_id))
        lengths = {info.name: info.context_length for info in await self._services.models.list(caller)}
        branches = [] if conversation is None else other_branches(conversation, path)
        update: Update = {
            self.here: {"session": session_id, "turns": [turn.id for turn in path]},
            self.chatbot: gr.Chatbot(messages_of(path, corrections), feedback_value=corrections.ratings(path)),
            self.facts: facts_of(path, lengths),
            self.say: gr.Textbox(**SEND),
            self.branches: gr.Dropdown(
                [(branch.label, branch.leaf_id) for branch in branches],
                value=None,
                visible=bool(branches),
                label=f"Other versions of this conversation ({len(branches)})",
            ),
            self.sessions.list: await self.sessions.items(caller, session_id, query),
            self.sessions.title: "" if conversation is None else conversation.session.title,
            self.sessions.confirm: gr.Button(visible=False),
            **{tool: gr.Button(interactive=conversation is not None) for tool in self.sessions.tools},
            **await self._settings_of(caller, conversation, list(lengths)),
        }
        return Look(update, path, corrections, lengths)

    async def _settings_of(self, caller: Caller, conversation: Conversation | None, names: list[str]) -> Update:
        session = None if conversation is None else conversation.session
        model = (session.model if session is not None else None) or await self._services.models.first_choice(caller)
        return {
            self.panel.model: gr.Dropdown(names if model is None or model in names else [*names, model], value=model),
            self.panel.system: (session.system if session is not None else None) or "",
        }

    async def show(
        self, caller: Caller, session_id: str | None, query: str, still_shown: StillShown
    ) -> AsyncIterator[Update]:
        """The conversation, and on and on as its reply is written, where one is. Raises `NotFound`."""
        look = await self.look(caller, session_id, query)
        if not still_shown():
            yield self.nothing
            return
        if look.running is None:
            yield look.update
            return
        reply = await self._services.chat.resume(caller, look.running.id, 0)
        async for update in self.follow(caller, reply, query, still_shown, look):
            yield update

    async def follow(
        self,
        caller: Caller,
        reply: SessionReply,
        query: str,
        still_shown: StillShown,
        look: Look | None = None,
        asked_at: float | None = None,
    ) -> AsyncIterator[Update]:
        """The conversation while a reply is being written, then as it ended; nothing more once the page shows another.

        `look`: the conversation as it is now, where the caller knows it. `asked_at`: when somebody asked, by
        `time.perf_counter()`; then it is told how long the first token took.
        """
        look = look or await self.look(caller, reply.session_id, query)
        if not still_shown():
            yield self.nothing
            return
        yield {**look.update, self.say: gr.Textbox("", **STOP)}
        before = messages_of(look.path[:-1], look.corrections)
        text, num_tokens = "", 0
        shown_at = time.perf_counter()  # the first frame comes later too: Gradio's page loses what comes at once
        async for piece in reply:
            now = time.perf_counter()
            text += piece.delta.text
            num_tokens += len(piece.delta.token_ids)
            if not still_shown():
                return
            if now - shown_at >= FRAME_SECONDS:
                shown_at = now
                yield {self.chatbot: [*before, message_of(text)]}
        look = await self.look(caller, reply.session_id, query)
        if not still_shown():
            return
        pace = reply.pace
        if pace is not None and num_tokens > 1 and pace.last_at > pace.first_at:
            first_seconds = None if asked_at is None else pace.first_at - asked_at
            speed = Speed(first_seconds, (num_tokens - 1) / (pace.last_at - pace.first_at))
            look.update[self.facts] = facts_of(look.path, look.context_lengths, speed)
        yield look.update
