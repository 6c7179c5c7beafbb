"""An X-ray as HTML: tokens as chips, candidates as a table, stages as bars. Pure functions; every text is escaped."""

from html import escape
from typing import Final

from mini_claude.services.xray import Xray
from mini_claude.types import CandidateTrace, PromptToken, TokenTrace

STAGES: Final = {
    "render": "write the conversation as one text (the model's template)",
    "tokenize": "cut the text into tokens",
    "queue": "wait for a place in the batch",
    "prefill": "read the prompt",
    "decode": "compute one token after another",
    "sampling": "choose the tokens",
    "detokenize": "turn tokens back into text",
}
STEPS: Final = {
    "model": "Model",
    "repetition_penalty": "Repetition penalty",
    "presence_penalty": "Presence penalty",
    "frequency_penalty": "Frequency penalty",
    "logit_bias": "Bias",
    "temperature": "Temperature",
    "top_k": "Top k",
    "top_p": "Top p",
    "min_p": "Min p",
}


def visible(token: str) -> str:
    """A token's text with what cannot be seen made visible, escaped."""
    shown = token.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥").replace("\r", "␍")
    return escape(shown) or "∅"


def prompt_html(xray: Xray) -> str:
    """The prompt's tokens in order; those that were in the cache are underlined."""
    cached = xray.usage.cached_tokens
    chips = (_prompt_chip(number, token, number < cached) for number, token in enumerate(xray.prompt.tokens))
    return (
        f'<p class="facts">{len(xray.prompt.tokens)} tokens; {cached} of them (underlined) were known from before and '
        f'did not have to be read.</p><div class="chips">{"".join(chips)}</div>'
    )


def _prompt_chip(number: int, token: PromptToken, cached: bool) -> str:
    kinds = " ".join(name for name, given in (("control", token.is_control), ("cached", cached)) if given)
    title = "control token, " if token.is_control else ""
    return (
        f'<span class="chip {kinds}" title="{title}id {token.token_id}, place {number}">{visible(token.token)}</span>'
    )


def reply_html(xray: Xray, chosen: int | None) -> str:
    """The reply's tokens as buttons, coloured by how probable the model found them."""
    chips = (_reply_chip(number, token, number == chosen) for number, token in enumerate(xray.tokens))
    return f'<div class="chips">{"".join(chips)}</div>'


def _reply_chip(number: int, token: TokenTrace, current: bool) -> str:
    share = chance_of(token)
    title = f"id {token.token_id}, {share:.1%} by the model" + (", given" if token.forced else "")
    return (
        f'<button type="button" class="chip" data-index="{number}" aria-pressed="{"true" if current else "false"}" '
        f'style="--share:{share:.3f}" title="{title}">{visible(token.token)}</button>'
    )


def chance_of(token: TokenTrace) -> float:
    """The model's own probability of the token that was taken."""
    return next((each.probabilities[0] or 0.0 for each in token.candidates if each.token_id == token.token_id), 0.0)


def candidates_html(xray: Xray, index: int) -> str:
    """What each step of sampling made of the candidates at one place. Each row can be clicked."""
    token = xray.tokens[index]
    head = "".join(f"<th>{escape(STEPS.get(step, step))}</th>" for step in token.steps)
    rows = "".join(_candidate_row(each, each.token_id == token.token_id) for each in token.candidates)
    return (
        f'<table class="candidates"><caption>Token {index + 1} of {len(xray.tokens)}: {visible(token.token)}. '
        "Click a candidate to let the answer go on from there.</caption>"
        f"<thead><tr><th>Candidate</th><th>Id</th>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _candidate_row(candidate: CandidateTrace, taken: bool) -> str:
    cells = "".join(_cell(share) for share in candidate.probabilities)
    mark = " ✓" if taken else ""
    return (
        f'<tr{" class=taken" if taken else ""}><td><button type="button" class="chip" '
        f'data-token="{candidate.token_id}">{visible(candidate.token)}</button>{mark}</td>'
        f"<td>{candidate.token_id}</td>{cells}</tr>"
    )


def _cell(share: float | None) -> str:
    if share is None:
        return '<td class="out">out</td>'
    return f'<td style="--share:{share:.3f}">{share:.1%}</td>' if share >= 0.0005 else "<td>&lt;0.1%</td>"


def stages_html(xray: Xray) -> str:
    """Where the time went."""
    total = sum(xray.seconds.values()) or 1.0
    rows = "".join(
        f'<tr><th scope="row">{stage}</th><td>{explained}</td><td class="number">{1000 * seconds:.1f} ms</td>'
        f'<td class="bar"><span style="width:{100 * seconds / total:.1f}%"></span></td></tr>'
        for stage, explained in STAGES.items()
        if (seconds := xray.seconds.get(stage)) is not None
    )
    return f'<table class="stages"><tbody>{rows}</tbody></table>'


_ENDINGS: Final = {"stop": "ended by the model itself", "length": "cut at the longest answer allowed"}


def summary_html(xray: Xray, *, chosen: bool = False) -> str:
    """What this is an X-ray of, and what it can and cannot tell; `chosen`: its beginning was somebody's choice."""
    if chosen:
        how = "It begins with the tokens up to the one that you clicked; the model went on from there."
    elif xray.mode == "generated":
        how = "This answer was made just now, and recorded while it was."
    else:
        how = (
            "This stored answer was read again: the chances are the model's, how the tokens were drawn is not recorded."
        )
        if not xray.exact:
            how += " Its text gives other tokens than were generated then, so the places differ a little."
    return (
        f'<p class="facts"><strong>{escape(xray.model)}</strong> · {len(xray.prompt.tokens)} tokens in, '
        f"{len(xray.tokens)} out, {_ENDINGS.get(xray.finish_reason, 'not at its end')}. {how}</p>"
    )
