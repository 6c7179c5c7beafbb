"""Who gets into an engine, and who is next. Pure arithmetic: nothing here waits or computes."""

from collections import Counter
from collections.abc import Iterable
from typing import Final, Protocol, TypeVar

from mini_claude.errors import ContextLengthExceeded, InvalidRequest, Overloaded
from mini_claude.types import GenerationRequest, LoadOptions

_SHARE: Final = 3


def check_request(request: GenerationRequest, context_length: int, vocab_size: int) -> None:
    """Raise `InvalidRequest` or `ContextLengthExceeded` when this request can never run."""
    num_prompt_tokens = len(request.prompt_token_ids)
    max_tokens = request.params.max_tokens
    if num_prompt_tokens == 0:
        raise InvalidRequest("The prompt is empty: send at least one token.", param="prompt")
    if not all(0 <= token_id < vocab_size for token_id in request.prompt_token_ids):
        raise InvalidRequest(f"The prompt has token ids outside 0..{vocab_size - 1}.", param="prompt")
    if max_tokens is not None and max_tokens < 1:
        raise InvalidRequest(f"max_tokens is {max_tokens}: it must be at least 1.", param="max_tokens")
    for token_id in request.params.logit_bias:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(
                f"logit_bias names token {token_id}, but this model's token ids are 0..{vocab_size - 1}.",
                param="logit_bias",
            )
    for token_id in request.params.forced_token_ids:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(
                f"The forced token {token_id} does not exist: this model's token ids are 0..{vocab_size - 1}.",
                param="prefix_token_ids",
            )
    needed = num_prompt_tokens + (max_tokens or 1)
    if needed > context_length:
        reply = f"{max_tokens} for the reply" if max_tokens is not None else "at least 1 for the reply"
        raise ContextLengthExceeded(
            f"This model can hold {context_length} tokens, but {needed} are needed: {num_prompt_tokens} of "
            f"the prompt and {reply}. Shorten the messages or ask for fewer tokens.",
            param="messages",
        )


class Crowd:
    """All requests of an engine that have not ended: who is answered, and who waits.

    An owner's crowd fills a queue only so far that others find a place in it: an owner may wait with at most
    `_SHARE` times as many requests as places are left (the dynamic thresholds of Choudhury and Hahne 1998).
    """

    def __init__(self, options: LoadOptions) -> None:
        self._options = options
        self._owners: dict[str, str] = {}  # by request id
        self._waiting: Counter[str] = Counter()  # by owner: requests without a token yet
        self._answered: set[str] = set()  # request ids

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._owners

    def __len__(self) -> int:
        return len(self._owners)

    def check_room(self, owner: str) -> None:
        """Raise `Overloaded` when all seats are taken and no further request of this owner may wait."""
        num_seats = self._options.max_num_seqs
        num_waiting = len(self) - num_seats
        num_places = self._options.max_waiting - num_waiting
        retry_after = 1.0 + num_waiting / num_seats  # a second for every full batch ahead: a rough guess
        if num_places <= 0:
            raise Overloaded(
                f"The model is busy with {len(self)} requests. Try again in {retry_after:.0f} s.",
                retry_after=retry_after,
            )
        own = self._waiting[owner] - max(0, num_seats - len(self._answered))  # those will not wait for a seat
        if owner and own > _SHARE * num_places:
            raise Overloaded(
                f"{own} of your requests wait already; what is left of the queue is for others. Try again in "
                f"{retry_after:.0f} s.",
                retry_after=retry_after,
            )

    def enter(self, request: GenerationRequest) -> None:
        """A request has been admitted."""
        self._owners[request.request_id] = request.owner
        self._waiting[request.owner] += 1

    def answered(self, request_id: str) -> None:
        """It has a token; more of them change nothing."""
        if request_id not in self._answered:
            self._answered.add(request_id)
            self._waiting[self._owners[request_id]] -= 1

    def leave(self, request_id: str) -> None:
        """It has ended."""
        self.answered(request_id)
        self._answered.remove(request_id)
        owner = self._owners.pop(request_id)
        if not self._waiting[owner]:
            del self._waiting[owner]


class Candidate(Protocol):
    """Somebody with a request."""

    @property
    def request(self) -> GenerationRequest:
        """What it wants."""
        ...


C = TypeVar("C", bound=Candidate)


class Turns:
    """Who gets the next seat: the owner who has the fewest, of several the one whose last turn is the longest ago."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}  # by owner: a number for each owner that there ever was
        self._num_taken = 0

    def next(self, waiting: Iterable[C], running: Iterable[C]) -> C:
        """Of that owner's requests the first in `waiting`, which has one."""
        num_running = Counter(each.request.owner for each in running)

        def rank(candidate: C) -> tuple[int, int]:
            owner = candidate.request.owner
            return num_running[owner], self._last.get(owner, 0)

        return min(waiting, key=rank)

    def take(self, owner: str) -> None:
        """This owner got a seat."""
        self._num_taken += 1
        self._last[owner] = self._num_taken


def max_new_tokens(request: GenerationRequest, context_length: int) -> int:
    """The most tokens that this (checked) request may generate."""
    rest = context_length - len(request.prompt_token_ids)
    return rest if request.params.max_tokens is None else min(request.params.max_tokens, rest)
