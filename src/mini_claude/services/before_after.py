"""What training changed, seen in answers: the base's and the tuned model's to questions of the training data."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from mini_claude.data.records import Job
from mini_claude.errors import Conflict, InvalidRequest, NotFound
from mini_claude.services.chat import ChatService
from mini_claude.services.datasets import DatasetService
from mini_claude.services.identity import Caller
from mini_claude.services.training import TrainingService
from mini_claude.training.prompts import TrainingPrompt
from mini_claude.types import SamplingParams

NUM_PROMPTS: Final = 4
MAX_TOKENS: Final = 48
_PARAMS: Final = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0)


@dataclass(frozen=True, slots=True)
class BeforeAfter:
    """A question, what the data says to it, and what the models say. `after` is None while it is being written."""

    question: str
    expected: str
    before: str
    after: str | None


class BeforeAfterService:
    """Asks both models, greedily and briefly, one after the other."""

    def __init__(self, training: TrainingService, datasets: DatasetService, chat: ChatService) -> None:
        self._training = training
        self._datasets = datasets
        self._chat = chat

    async def compare(self, caller: Caller, job_id: str) -> AsyncIterator[BeforeAfter]:
        """One question after another: first with the base's answer, then with both.

        Raises `NotFound` (job, or its data is gone), `Conflict` for a job without a result, `InvalidRequest` for data
        without a question, and what a reply raises.
        """
        job = await self._training.get(caller, job_id)
        if job.adapter is None:
            raise Conflict("This training has no result yet, so there is nothing to compare.")
        prompts = await self._datasets.prompts(caller, await self._dataset_of(caller, job), NUM_PROMPTS)
        if not prompts:
            raise InvalidRequest("No row of the training data holds a question to ask.", code="no_prompts")
        for prompt in prompts:
            question = prompt.messages[-1].content if prompt.messages else prompt.text
            before = await self._answer(caller, job.spec.model_name, prompt)
            yield BeforeAfter(question, prompt.expected, before, None)
            yield BeforeAfter(question, prompt.expected, before, await self._answer(caller, job.adapter, prompt))

    async def _dataset_of(self, caller: Caller, job: Job) -> str:
        """A name of the caller's for what the job was trained on; the one it had then may mean something else now."""
        for dataset in await self._datasets.list(caller):
            if dataset.sha256 == job.spec.dataset_sha256:
                return dataset.name
        raise NotFound(
            "The data of this training was deleted, so its questions are gone; upload it again to compare.",
            code="dataset_not_found",
        )

    async def _answer(self, caller: Caller, model: str, prompt: TrainingPrompt) -> str:
        if prompt.messages:
            stream = await self._chat.reply(caller, model, prompt.messages, _PARAMS)
        else:
            stream = await self._chat.complete(caller, model, prompt.text, _PARAMS)
        try:
            return "".join([event.delta.text async for event in stream])
        finally:
            await stream.aclose()
