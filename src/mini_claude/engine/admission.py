"""What an engine refuses before it queues it. Pure arithmetic, so that API and engine can ask at any time."""

from mini_claude.errors import ContextLengthExceeded, InvalidRequest, Overloaded
from mini_claude.types import GenerationRequest, LoadOptions


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


def check_queue(num_unfinished: int, options: LoadOptions) -> None:
    """Raise `Overloaded` when all seats are taken and no further request may wait."""
    num_waiting = num_unfinished - options.max_num_seqs
    if num_waiting >= options.max_waiting:
        retry_after = 1.0 + num_waiting / options.max_num_seqs  # a second for every full batch ahead: a rough guess
        raise Overloaded(
            f"The model is busy with {num_unfinished} requests. Try again in {retry_after:.0f} s.",
            retry_after=retry_after,
        )


def max_new_tokens(request: GenerationRequest, context_length: int) -> int:
    """The most tokens that this (checked) request may generate."""
    rest = context_length - len(request.prompt_token_ids)
    return rest if request.params.max_tokens is None else min(request.params.max_tokens, rest)
