"""Datasets made of what their owner thinks of answers: an upload like any other, written by us."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, Literal

from mini_claude.data.records import Dataset
from mini_claude.errors import InvalidRequest, NotFound, PayloadTooLarge
from mini_claude.services.chat import ChatService
from mini_claude.services.datasets import DatasetService
from mini_claude.services.feedback import FeedbackService
from mini_claude.services.feedback_rows import Harvest, comparison_rows, correction_rows, rated_rows
from mini_claude.services.identity import Caller
from mini_claude.utils.threads import run_to_its_end

FeedbackSource = Literal["rated", "preferences"]
PAGE: Final = 200
_NOTHING: Final[dict[FeedbackSource, str]] = {
    "rated": "There is nothing to learn from yet: give answers a thumb up, or correct them.",
    "preferences": "There is no pair of answers yet: compare two, or correct an answer.",
}


@dataclass(frozen=True, slots=True)
class MadeDataset:
    """What was made; `num_left_out` answers are not in it because they had been stopped or cut."""

    dataset: Dataset
    num_left_out: int


class FeedbackDatasets:
    """Rows of a caller's rated sessions, or of their preferences."""

    def __init__(self, chat: ChatService, feedback: FeedbackService, datasets: DatasetService) -> None:
        self._chat = chat
        self._feedback = feedback
        self._datasets = datasets

    async def make(self, caller: Caller, name: str, source: FeedbackSource) -> MadeDataset:
        """A new dataset under that name; the same content again is what is there.

        Raises `InvalidRequest` (code "no_feedback") when there is nothing to make it of, and what an upload raises.
        """
        num_rows = num_left_out = 0
        async with self._datasets.receive() as incoming:
            try:
                async for harvest in self._harvests(caller, source):
                    num_rows += len(harvest.rows)
                    num_left_out += harvest.num_left_out
                    lines = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in harvest.rows)
                    await run_to_its_end(incoming.write, lines)
                if not num_rows:
                    unfinished = f" ({num_left_out} answers were stopped or cut.)" if num_left_out else ""
                    raise InvalidRequest(_NOTHING[source] + unfinished, code="no_feedback", param="source")
                dataset, _ = await self._datasets.add(caller, incoming, f"{source}.jsonl", name)
            except PayloadTooLarge as error:  # no file was sent: its field is not there to be named
                raise PayloadTooLarge(error.message, code=error.code, param="source") from error
        return MadeDataset(dataset, num_left_out)

    async def _harvests(self, caller: Caller, source: FeedbackSource) -> AsyncIterator[Harvest]:
        make = rated_rows if source == "rated" else correction_rows
        for session_id in await self._feedback.sessions(caller):
            try:
                given = await self._feedback.of_session(caller, session_id)
                conversation = await self._chat.get(caller, session_id)
            except NotFound:  # deleted since it was listed
                continue
            yield make(conversation, given)
        before: str | None = None
        while source == "preferences":
            page = await self._feedback.preferences(caller, PAGE, before)
            yield comparison_rows(page)
            if len(page) < PAGE:
                return
            before = page[-1].id
