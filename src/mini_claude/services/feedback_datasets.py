"""Datasets made of what their owner thinks of answers: an upload like any other, written by us."""

import json
from collections.abc import AsyncIterator
from typing import Final, Literal

from mini_claude.data.records import Dataset
from mini_claude.errors import InvalidRequest
from mini_claude.services.chat import ChatService
from mini_claude.services.datasets import DatasetService
from mini_claude.services.feedback import FeedbackService
from mini_claude.services.feedback_rows import Row, correction_rows, preference_row, rated_rows
from mini_claude.services.identity import Caller
from mini_claude.utils.threads import run_to_its_end

FeedbackSource = Literal["rated", "preferences"]
PAGE: Final = 200
_NOTHING: Final[dict[FeedbackSource, str]] = {
    "rated": "There is nothing to learn from yet: give answers a thumb up, or correct them.",
    "preferences": "There is no pair of answers yet: compare two, or correct an answer.",
}


class FeedbackDatasets:
    """Rows of a caller's rated sessions, or of their preferences."""

    def __init__(self, chat: ChatService, feedback: FeedbackService, datasets: DatasetService) -> None:
        self._chat = chat
        self._feedback = feedback
        self._datasets = datasets

    async def make(self, caller: Caller, name: str, source: FeedbackSource) -> Dataset:
        """A new dataset under that name; the same content again is what is there.

        Raises `InvalidRequest` (code "no_feedback") when there is nothing to make it of, and what an upload raises.
        """
        num_rows = 0
        async with self._datasets.receive() as incoming:
            async for row in self._rows(caller, source):
                num_rows += 1
                await run_to_its_end(incoming.write, json.dumps(row, ensure_ascii=False).encode() + b"\n")
            if not num_rows:
                raise InvalidRequest(_NOTHING[source], code="no_feedback", param="source")
            dataset, _ = await self._datasets.add(caller, incoming, f"{source}.jsonl", name)
            return dataset

    async def _rows(self, caller: Caller, source: FeedbackSource) -> AsyncIterator[Row]:
        make = rated_rows if source == "rated" else correction_rows
        for session_id in await self._feedback.sessions(caller):
            given = await self._feedback.of_session(caller, session_id)
            for row in make(await self._chat.get(caller, session_id), given):
                yield row
        before: str | None = None
        while source == "preferences":
            page = await self._feedback.preferences(caller, PAGE, before)
            for preference in page:
                yield preference_row(preference)
            if len(page) < PAGE:
                return
            before = page[-1].id
