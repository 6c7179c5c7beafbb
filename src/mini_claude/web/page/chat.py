"""The chat: what is shown of a conversation, and what each button does to it.

Everything is in the database: an event changes it through the services and shows it anew. What the browser keeps is
which conversation it shows and the ids of its turns, so that an event means the turn that the visitor saw.
"""

import time
from collections.abc import AsyncIterator
from typing import Any, Final

import gradio as gr

from mini_claude.data.records import Conversation, Rating, Turn
from mini_claude.errors import InvalidRequest, NotFound
from mini_claude.services.identity import Caller
from mini_claude.services.services import Services
from mini_claude.services.session_export import ExportKind
from mini_claude.services.session_reply import SessionReply
from mini_claude.services.session_turn import SessionTurn
from mini_claude.web.page.conversation import other_branches, shown_path
from mini_claude.web.page.downloads import write_download
from mini_claude.web.page.facts import facts_of
from mini_claude.web.page.messages import Corrections, edited_text, message_of, messages_of
from mini_claude.web.page.sampling_panel import SamplingPanel
from mini_claude.web.page.session_list import SessionList
from mini_claude.web.page.visitor import event, stream, visitor

FRAME_SECONDS: Final = 0.1  # between two looks of a reply that is being written
EMPTY: Final[dict[str, Any]] = {"session": None, "turns": []}
_PLACEHOLDER: Final = "### Ask something\nYour conversations stay on this machine."
_QUIET: Final[dict[str, Any]] = {"show_progress": "hidden", "api_visibility": "private"}
# On a phone it would lie over everything.
_CLOSE_SIDEBAR: Final = """() => {
  if (window.innerWidth < 768) document.querySelector("#sidebar button.toggle-button")?.click();
}"""
_CLICK_FILE: Final = "() => document.querySelector('#session-file').click()"

Here = dict[str, Any]
Update = dict[gr.blocks.Block, Any]


class ChatTab:
    """Built inside of a tab; `start` afterwards wires what happens when the page opens."""

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
            show_label=False,
            lines=1,
            max_lines=8,
            autofocus=True,
            submit_btn=True,
            elem_id="say",
        )
        self.branches = gr.Dropdown([], label="Other versions of this conversation", visible=False, elem_id="branches")
        self.panel = SamplingPanel(services)
        self._all: list[gr.blocks.Block] = [
            *(self.here, self.chatbot, self.facts, self.say, self.branches, self.panel.model, self.panel.system),
            *(self.sessions.list, self.sessions.title, self.sessions.confirm),
        ]
        self._wire()

    def start(self, page: gr.Blocks) -> None:
        """What happens when the page opens: the conversation from before, with a reply that still runs."""
        look = [self.here, self.sessions.query]
        page.load(self._restore, look, self._all, **_QUIET).then(self._watch, look, self._all, **_QUIET)
        page.load(None, None, None, js=_CLOSE_SIDEBAR)

    def _wire(self) -> None:
        look = [self.here, self.sessions.query]
        choice = self.panel.inputs
        sessions = self.sessions
        self.say.submit(self._say, [self.say, *look, *choice], self._all, **_QUIET)
        self.say.stop(self._stop, self.here, None, **_QUIET)
        self.chatbot.retry(self._retry, [*look, *choice], self._all, **_QUIET)
        self.chatbot.edit(self._edit, [*look, *choice], self._all, **_QUIET)
        self.chatbot.like(self._like, self.here, None, **_QUIET)
        self.branches.input(self._select_branch, [self.branches, *look], self._all, **_QUIET)
        sessions.new.click(self._new, sessions.query, self._all, **_QUIET)
        opened = sessions.list.select(self._open, sessions.query, self._all, **_QUIET)
        opened.success(self._watch, look, self._all, **_QUIET)
        sessions.query.change(self._search, look, sessions.list, trigger_mode="always_last", **_QUIET)
        sessions.rename.click(self._rename, [sessions.title, *look], self._all, **_QUIET)
        sessions.title.submit(self._rename, [sessions.title, *look], self._all, **_QUIET)
        sessions.delete.click(lambda: gr.Button(visible=True), None, sessions.confirm, **_QUIET)
        sessions.confirm.click(self._delete, look, self._all, **_QUIET)
        for button, kind in self._exports():
            made = button.click(self._export(kind), self.here, sessions.file, **_QUIET)
            made.success(None, None, None, js=_CLICK_FILE)

    def _exports(self) -> tuple[tuple[gr.Button, ExportKind], ...]:
        return (self.sessions.export_markdown, "markdown"), (self.sessions.export_json, "json")

    # --- showing ---

    async def _look(self, caller: Caller, session_id: str | None, query: str) -> tuple[Update, tuple[Turn, ...]]:
        """Everything about a conversation, and its path. One that is gone (or another's) is an empty one."""
        conversation = None if session_id is None else await self._services.chat.get(caller, session_id)
        path = () if conversation is None else shown_path(conversation)
        corrections = await self._corrections(caller, session_id)
        branches = [] if conversation is None else other_branches(conversation, path)
        update: Update = {
            self.here: {"session": session_id, "turns": [turn.id for turn in path]},
            self.chatbot: gr.Chatbot(messages_of(path, corrections), feedback_value=corrections.ratings(path)),
            self.facts: await facts_of(self._services, path),
            self.say: gr.Textbox(submit_btn=True, stop_btn=False),
            self.branches: gr.Dropdown(
                [(branch.label, branch.leaf_id) for branch in branches],
                value=None,
                visible=bool(branches),
                label=f"Other versions of this conversation ({len(branches)})",
            ),
            self.sessions.list: await self.sessions.items(caller, session_id, query),
            self.sessions.title: "" if conversation is None else conversation.session.title,
            self.sessions.confirm: gr.Button(visible=False),
            **await self._settings_of(conversation),
        }
        return update, path

    async def _settings_of(self, conversation: Conversation | None) -> Update:
        names = await self.panel.models()
        session = None if conversation is None else conversation.session
        model = (session.model if session is not None else None) or await self._services.models.default_name()
        return {
            self.panel.model: gr.Dropdown(names if model in names else [*names, model], value=model),
            self.panel.system: (session.system if session is not None else None) or "",
        }

    async def _corrections(self, caller: Caller, session_id: str | None) -> Corrections:
        if session_id is None:
            return Corrections({})
        return Corrections(await self._services.feedback.of_session(caller, session_id))

    async def _follow(self, caller: Caller, reply: SessionReply, query: str) -> AsyncIterator[Update]:
        """The conversation while a reply is being written, then as it ended."""
        update, path = await self._look(caller, reply.session_id, query)
        before = messages_of(path[:-1], await self._corrections(caller, reply.session_id))
        yield {**update, self.say: gr.Textbox("", submit_btn=False, stop_btn=True)}
        text, num_tokens, started = "", 0, time.perf_counter()
        shown_at = started  # the first frame comes later too: Gradio's page loses what comes at once
        first_at: float | None = None
        async for piece in reply:
            now = time.perf_counter()
            first_at = now if first_at is None else first_at
            text += piece.delta.text
            num_tokens += len(piece.delta.token_ids)
            if now - shown_at >= FRAME_SECONDS:
                shown_at = now
                yield {self.chatbot: [*before, message_of(text)]}
        ended = time.perf_counter()
        update, path = await self._look(caller, reply.session_id, query)
        if first_at is not None and num_tokens > 1 and ended > first_at:
            update[self.facts] = await facts_of(
                self._services,
                path,
                first_seconds=first_at - started,
                tokens_per_second=num_tokens / (ended - first_at),
            )
        yield update

    # --- events: talking ---

    @event
    async def _restore(self, request: gr.Request, here: Here, query: str) -> Update:
        caller = visitor(request)
        session_id = here.get("session")
        try:
            return (await self._look(caller, session_id, query))[0]
        except NotFound:  # it was deleted, or is another visitor's
            return (await self._look(caller, None, query))[0]

    @stream
    async def _watch(self, request: gr.Request, here: Here, query: str) -> AsyncIterator[Update]:
        """Go on showing a reply that is still being written."""
        caller = visitor(request)
        _, path = await self._look(caller, here["session"], query)
        if not path or path[-1].status != "running":
            yield {self.facts: gr.skip()}
            return
        async for update in self._follow(caller, await self._services.chat.resume(caller, path[-1].id, 0), query):
            yield update

    @stream
    async def _say(
        self, request: gr.Request, text: str, here: Here, query: str, *settings: Any
    ) -> AsyncIterator[Update]:
        if not text.strip():
            raise InvalidRequest("The message is empty; write something.")
        turns = here["turns"]
        parent = None if here["session"] is None else (turns[-1] if turns else "")
        async for update in self._answer(visitor(request), text, parent, here, query, settings):
            yield update

    async def _answer(
        self,
        caller: Caller,
        content: str | None,
        parent_id: str | None,
        here: Here,
        query: str,
        settings: tuple[Any, ...],
    ) -> AsyncIterator[Update]:
        choice = self.panel.choice(settings)
        turn = SessionTurn(
            session_id=here["session"],
            content=content,
            params=choice.params,
            model=choice.model,
            system=choice.system,
            parent_id=parent_id,
            resumable=True,
        )
        reply = await self._services.chat.say(caller, turn)
        async for update in self._follow(caller, reply, query):
            yield update

    @event
    async def _stop(self, request: gr.Request, here: Here) -> None:
        for turn_id in here["turns"][-1:]:
            await self._services.chat.stop(visitor(request), turn_id)

    @stream
    async def _retry(self, request: gr.Request, here: Here, query: str, *settings: Any) -> AsyncIterator[Update]:
        """Answer the last question again; the answer from before stays as another version."""
        if len(here["turns"]) < 2:
            raise InvalidRequest("There is no answer yet to be given again.")
        async for update in self._answer(visitor(request), None, here["turns"][-2], here, query, settings):
            yield update

    @stream
    async def _edit(
        self, request: gr.Request, edit: gr.EditData, here: Here, query: str, *settings: Any
    ) -> AsyncIterator[Update]:
        """A changed question begins another branch; a changed answer is stored as what it should have been."""
        caller, index, text = visitor(request), _index(edit), edited_text(str(edit.value))
        turns = here["turns"]
        if index % 2:
            given = (await self._services.feedback.of_session(caller, here["session"])).get(turns[index])
            rating = None if given is None else given.rating
            await self._services.feedback.rate(caller, turns[index], rating=rating, correction=text)
            gr.Info("Stored as the answer that should have been given.")
            update, _ = await self._look(caller, here["session"], query)
            yield update
            return
        parent = turns[index - 1] if index else ""
        async for update in self._answer(caller, text, parent, here, query, settings):
            yield update

    @event
    async def _like(self, request: gr.Request, like: gr.LikeData, here: Here) -> None:
        """A thumb that is clicked again is taken back; a correction stays."""
        caller, reply_id = visitor(request), here["turns"][_index(like)]
        given = (await self._services.feedback.of_session(caller, here["session"])).get(reply_id)
        thumbs: dict[bool | str, Rating] = {True: "up", False: "down"}
        rating = thumbs.get(like.liked) if isinstance(like.liked, bool) else None
        correction = None if given is None else given.correction
        await self._services.feedback.rate(caller, reply_id, rating=rating, correction=correction)

    # --- events: conversations ---

    @event
    async def _select_branch(self, request: gr.Request, leaf_id: str | None, here: Here, query: str) -> Update:
        caller = visitor(request)
        if leaf_id:
            await self._services.chat.select(caller, here["session"], leaf_id)
        return (await self._look(caller, here["session"], query))[0]

    @event
    async def _new(self, request: gr.Request, query: str) -> Update:
        return {**(await self._look(visitor(request), None, query))[0], self.say: gr.Textbox("", submit_btn=True)}

    @event
    async def _open(self, request: gr.Request, chosen: gr.SelectData, query: str) -> Update:
        return (await self._look(visitor(request), str(chosen.value), query))[0]

    @event
    async def _search(self, request: gr.Request, here: Here, query: str) -> list[dict[str, Any]]:
        return await self.sessions.items(visitor(request), here["session"], query)

    @event
    async def _rename(self, request: gr.Request, title: str, here: Here, query: str) -> Update:
        caller = visitor(request)
        await self._services.chat.rename(caller, _session(here), title)
        return (await self._look(caller, here["session"], query))[0]

    @event
    async def _delete(self, request: gr.Request, here: Here, query: str) -> Update:
        caller = visitor(request)
        await self._services.chat.delete(caller, _session(here))
        return (await self._look(caller, None, query))[0]

    def _export(self, kind: ExportKind) -> Any:
        @event
        async def export(request: gr.Request, here: Here) -> str:
            made = await self._services.session_export.export(visitor(request), _session(here), kind)
            return write_download(self._services.settings, made.file_name, made.text)

        return export


def _session(here: Here) -> str:
    if here["session"] is None:
        raise InvalidRequest("There is no conversation yet: send a message first.")
    return str(here["session"])


def _index(data: gr.LikeData | gr.EditData) -> int:
    return data.index[0] if isinstance(data.index, tuple | list) else data.index
