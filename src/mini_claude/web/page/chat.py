"""The chat's events: what each button does to a conversation."""

import json
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import gradio as gr

from mini_claude.data.records import Rating
from mini_claude.errors import InvalidRequest, NotFound
from mini_claude.services.services import Services
from mini_claude.services.session_export import ExportKind
from mini_claude.services.session_turn import SessionTurn
from mini_claude.web.page.chat_view import ChatView, Here, Update
from mini_claude.web.page.downloads import write_download
from mini_claude.web.page.messages import edited_text
from mini_claude.web.page.screens import Screens
from mini_claude.web.page.send_buttons import SEND
from mini_claude.web.page.visitor import event, stream, tell, visitor

_QUIET: Final[dict[str, Any]] = {"show_progress": "hidden", "api_visibility": "private"}
# On a phone it would lie over everything.
_CLOSE_SIDEBAR: Final = """() => {
  if (window.innerWidth < 768) document.querySelector("#sidebar button.toggle-button")?.click();
}"""
# In the browser, at once: what is typed right after it belongs to the new chat.
_EMPTY: Final = (
    f"[{{session: null, turns: [], chat: window.newChat}}, [], {json.dumps({'__type__': 'update', **SEND})}]"
)
_EMPTY_CHAT: Final = f"""(here) => {{
  window.leftSession = here.session;
  window.newChat = Math.random().toString(36);
  return {_EMPTY};
}}"""
# What the reply from before had sent when it was called off can arrive after that, and shows the conversation before.
_EMPTY_AGAIN: Final = f"""(here) => [null, window.leftSession].includes(here.session)
  ? {_EMPTY} : Array(3).fill({{__type__: "update"}})"""
_CLICK_FILE: Final = "() => document.querySelector('#session-file').click()"


class ChatTab:
    """Built inside of a tab; `start` afterwards wires what happens when the page opens."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._screens = Screens()
        self.view = ChatView(services)
        self._following = self._wire()

    def start(self, page: gr.Blocks) -> None:
        """What happens when the page opens: the conversation from before, with a reply that still runs."""
        view = self.view
        restored = page.load(self._restore, [view.here, view.sessions.query], view.all, **_QUIET)
        page.load(None, None, None, js=_CLOSE_SIDEBAR)
        page.unload(self._screens.close)
        new = view.sessions.new
        # An event's listeners run one after the other: what the reply from before still sends is off first.
        new.click(None, cancels=[restored, *self._following])
        chat = [view.here, view.chatbot, view.say]
        emptied = new.click(None, view.here, chat, js=_EMPTY_CHAT, **_QUIET)
        new.click(None, None, None, js=_CLOSE_SIDEBAR)
        renewed = emptied.then(self._new, [view.here, view.sessions.query], view.around, **_QUIET)
        renewed.then(None, view.here, chat, js=_EMPTY_AGAIN, **_QUIET)

    def _wire(self) -> list[gr.events.Dependency]:
        """Every button but "New chat". Gives the events that go on while a reply is being written."""
        view, sessions = self.view, self.view.sessions
        look = [view.here, sessions.query]
        choice = view.panel.inputs
        sessions.list.select(None, None, None, js=_CLOSE_SIDEBAR)  # first, since the next one lasts as long as a reply
        view.say.stop(self._stop, view.here, None, **_QUIET)
        view.chatbot.like(self._like, view.here, None, **_QUIET)
        view.branches.input(self._select_branch, [view.branches, *look], view.all, **_QUIET)
        sessions.query.change(self._search, look, sessions.list, trigger_mode="always_last", **_QUIET)
        renamed = [sessions.list, sessions.title]
        sessions.rename.click(self._rename, [sessions.title, *look], renamed, **_QUIET)
        sessions.title.submit(self._rename, [sessions.title, *look], renamed, **_QUIET)
        sessions.delete.click(lambda: gr.Button(visible=True), None, sessions.confirm, **_QUIET)
        sessions.confirm.click(self._delete, look, view.all, **_QUIET)
        for button, kind in self._exports():
            made = button.click(self._export(kind), view.here, sessions.file, **_QUIET)
            made.success(None, None, None, js=_CLICK_FILE)
        return [
            # In a new chat one can ask while the reply before still comes.
            view.say.submit(self._say, [view.say, *look, *choice], view.all, trigger_mode="multiple", **_QUIET),
            view.chatbot.retry(self._retry, [*look, *choice], view.all, **_QUIET),
            view.chatbot.edit(self._edit, [*look, *choice], view.all, **_QUIET),
            # One can go on to the next while the last one is still being written.
            sessions.list.select(self._open, sessions.query, view.all, trigger_mode="multiple", **_QUIET),
        ]

    def _exports(self) -> tuple[tuple[gr.Button, ExportKind], ...]:
        return (self.view.sessions.export_markdown, "markdown"), (self.view.sessions.export_json, "json")

    # --- events: talking ---

    @stream
    async def _say(
        self, request: gr.Request, text: str, here: Here, query: str, *settings: Any
    ) -> AsyncIterator[Update]:
        if not text.strip():
            raise InvalidRequest("The message is empty; write something.")
        turns = here["turns"]
        parent = None if here["session"] is None else (turns[-1] if turns else "")
        with self._screens.asking(request, (here["session"], parent, text)) as is_new:
            if not is_new:
                yield self.view.nothing
                return
            async for update in self._answer(request, text, parent, here, query, settings):
                yield update

    async def _answer(
        self,
        request: gr.Request,
        content: str | None,
        parent_id: str | None,
        here: Here,
        query: str,
        settings: tuple[Any, ...],
    ) -> AsyncIterator[Update]:
        caller, choice = visitor(request), self.view.panel.choice(settings)
        turn = SessionTurn(
            session_id=here["session"],
            content=content,
            params=choice.params,
            model=choice.model,
            system=choice.system,
            parent_id=parent_id,
            resumable=True,
        )
        asked_at = time.perf_counter()
        reply = await self._services.chat.say(caller, turn)
        still_shown = self._screens.turn(request, here.get("chat"))
        async for update in self.view.follow(caller, reply, query, still_shown, asked_at=asked_at):
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
        async for update in self._answer(request, None, here["turns"][-2], here, query, settings):
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
            tell("Stored as the answer that should have been given.")
            update = await self._look(request, here["session"], query)
            del update[self.view.facts]  # how fast it came is known to the page alone
            yield update
            return
        parent = turns[index - 1] if index else ""
        async for update in self._answer(request, text, parent, here, query, settings):
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

    async def _look(self, request: gr.Request, session_id: str | None, query: str) -> Update:
        self._screens.turn(request)
        return (await self.view.look(visitor(request), session_id, query)).update

    @stream
    async def _restore(self, request: gr.Request, here: Here, query: str) -> AsyncIterator[Update]:
        still_shown = self._screens.opened(request)
        if still_shown is None:
            yield self.view.nothing
            return
        try:
            async for update in self.view.show(visitor(request), here.get("session"), query, still_shown):
                yield update
        except NotFound:  # it was deleted, or is another visitor's
            async for update in self.view.show(visitor(request), None, query, still_shown):
                yield update

    @stream
    async def _open(self, request: gr.Request, chosen: gr.SelectData, query: str) -> AsyncIterator[Update]:
        async for update in self._show(request, str(chosen.value), query):
            yield update

    def _show(self, request: gr.Request, session_id: str | None, query: str) -> AsyncIterator[Update]:
        return self.view.show(visitor(request), session_id, query, self._screens.turn(request))

    @event
    async def _new(self, request: gr.Request, here: Here, query: str) -> Update:
        """All that stands around an empty chat, unless somebody asked something in it already."""
        still_shown = None if here["session"] is not None else self._screens.emptied(request, here.get("chat"))
        if still_shown is None:
            return self.view.nothing
        update = (await self.view.look(visitor(request), None, query)).update
        return {block: update[block] for block in self.view.around} if still_shown() else self.view.nothing

    @event
    async def _select_branch(self, request: gr.Request, leaf_id: str | None, here: Here, query: str) -> Update:
        if leaf_id:
            await self._services.chat.select(visitor(request), here["session"], leaf_id)
        return await self._look(request, here["session"], query)

    @event
    async def _search(self, request: gr.Request, here: Here, query: str) -> list[dict[str, Any]]:
        return await self.view.sessions.items(visitor(request), here["session"], query)

    @event
    async def _rename(self, request: gr.Request, title: str, here: Here, query: str) -> Update:
        """Only names change: a reply that is being written goes on."""
        caller = visitor(request)
        session = await self._services.chat.rename(caller, _session(here), title)
        sessions = self.view.sessions
        return {sessions.list: await sessions.items(caller, session.id, query), sessions.title: session.title}

    @event
    async def _delete(self, request: gr.Request, here: Here, query: str) -> Update:
        await self._services.chat.delete(visitor(request), _session(here))
        return await self._look(request, None, query)

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
