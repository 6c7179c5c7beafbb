"""Texts laid out for the model as one row without padding, in which a beginning that they share is there only once.

A token's hidden state depends on the tokens before it and on nothing else, so two texts that begin alike have the same
hidden states up to where they part. Nearly all training rows begin alike: with a system prompt, or with the prompt of a
preference pair. Laid out as a tree of tokens, that part is computed once, and its gradient is the sum over all texts
that continue it: the same loss and the same gradients for less work. In chatterbot-corpus it halves the tokens.

    system: be brief. ── user: Hi ── assistant: Hello!          row       be brief. Hi Hello! Who I.
                      └─ user: Who? ─ assistant: I.             parents   -1 0      1  2      1   4

Where dropout is used, the texts of a row share the noise of what they share.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from mini_claude.training.examples import TokenizedExample, TokenizedPreference


@dataclass(slots=True)
class FlatRow:
    """Tokens in an order in which each comes after its parent, the token before it in its text (-1: the first one).

    Target i is the token that `predictors[i]`, an index into the row, has to predict in text `owners[i]` of the row.
    """

    token_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    predictors: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    num_texts: int = 0
    num_data_tokens: int = 0  # of the texts, each counted in full
    file_rows: list[int] = field(default_factory=list)  # of the texts
    _children: dict[tuple[int, int], int] = field(default_factory=dict)  # (parent, token id) to index

    @property
    def is_one_text(self) -> bool:
        """Whether each token is the parent of the next: attention is then plainly causal."""
        return self.parents == list(range(-1, len(self.parents) - 1))

    def num_new(self, texts: Iterable[TokenizedExample]) -> int:
        """At most so many tokens would be added with these texts (what they share with each other counts for each)."""
        return sum(_num_inputs(text) - self._shared(text) for text in texts)

    def add(self, text: TokenizedExample) -> None:
        """Append what of the text is not there yet. Tokens after the last one that predicts a target are left out."""
        parent = -1
        for position in range(_num_inputs(text)):
            key = parent, text.token_ids[position]
            if key not in self._children:
                self._children[key] = len(self.token_ids)
                self.token_ids.append(key[1])
                self.positions.append(position)
                self.parents.append(parent)
            parent = self._children[key]
            if text.supervised[position + 1]:
                self.predictors.append(parent)
                self.targets.append(text.token_ids[position + 1])
                self.owners.append(self.num_texts)
        self.num_texts += 1
        self.num_data_tokens += len(text.token_ids)
        self.file_rows.append(text.row)

    def _shared(self, text: TokenizedExample) -> int:
        parent, length = -1, _num_inputs(text)
        for position in range(length):
            child = self._children.get((parent, text.token_ids[position]))
            if child is None:
                return position
            parent = child
        return length


def flat_rows(examples: Iterable[TokenizedExample | TokenizedPreference], max_tokens: int) -> Iterator[FlatRow]:
    """The examples in their order, in rows of at most `max_tokens` tokens; a longer example gets a row of its own.

    Both answers of a preference are in one row, the chosen one first.
    """
    row = FlatRow()
    for example in examples:
        texts = texts_of(example)
        if row.num_texts and len(row.token_ids) + row.num_new(texts) > max_tokens:
            yield row
            row = FlatRow()
        for text in texts:
            row.add(text)
    if row.num_texts:
        yield row


def texts_of(example: TokenizedExample | TokenizedPreference) -> Sequence[TokenizedExample]:
    """The texts that the example consists of."""
    return (example.chosen, example.rejected) if isinstance(example, TokenizedPreference) else (example,)


def num_tokens(example: TokenizedExample | TokenizedPreference) -> int:
    """Of all its texts."""
    return sum(len(text.token_ids) for text in texts_of(example))


def _num_inputs(text: TokenizedExample) -> int:
    """How many tokens stand before the last target; that one is only predicted, never read."""
    return len(text.supervised) - 1 - text.supervised[::-1].index(True)
