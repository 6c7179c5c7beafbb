"""A Hugging Face fast tokenizer as a TextCodec: plain text can never become a control token.

A tokenizer file has two parts: a model that cuts any text into pieces of a learned vocabulary, and a list of added
tokens that are searched for in the text first. The second part is what turns the nine characters `<|im_end|>` of a
user's message into the token that ends a turn, so it is taken out here: the codec keeps only the first part and
gives the added tokens' names to the renderer, which alone decides where one belongs.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from tokenizers import Tokenizer

from mini_claude.models.base_model import TextCodec

Preceding = Literal["nothing", "control", "text"]
_METASPACE: Final = "▁"  # how SentencePiece writes a space


class TokenizerCodec(TextCodec):
    """Encodes by the tokenizer's model alone; decodes to exact bytes.

    `control_tokens` maps the names of added tokens to their ids. Added tokens that are only whitespace (runs of
    spaces in GPT-NeoX or Gemma) are no control tokens: they are a better spelling of ordinary text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        spec: dict[str, Any] = json.loads(tokenizer.to_str())
        added = [token for token in spec["added_tokens"] if _is_control(token)]
        self.control_tokens: Mapping[str, int] = {token["content"]: token["id"] for token in added}
        self._control_names = {token["id"]: token["content"] for token in added}
        # Control tokens that swallow the whitespace before or after them, as Phi-3's do.
        self.strips_left = frozenset(token["id"] for token in added if token["lstrip"])
        self.strips_right = frozenset(token["id"] for token in added if token["rstrip"])
        # The others, as <think>, are part of what a reader sees.
        self._hidden = frozenset(token["id"] for token in added if token["special"])
        self.special_tokens = frozenset(token["content"] for token in added if token["special"])
        self._vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        self._bytes = _token_bytes(tokenizer, spec, self._control_names)

        vocab = tokenizer.get_vocab(with_added_tokens=False)
        spec["added_tokens"] = [
            # Those past the vocabulary are renamed instead of left out: the library numbers them by their order.
            token | {"content": f"\ufdd0{token['id']}\ufdd0"} if _is_control(token) else token
            for token in spec["added_tokens"]
            if not (_is_control(token) and token["content"] in vocab)
        ]
        spec["post_processor"] = spec["truncation"] = spec["padding"] = None
        self._first = Tokenizer.from_str(json.dumps(spec))
        scheme = _drop_prefix_space(spec)
        self._later = self._first if scheme is None else Tokenizer.from_str(json.dumps(spec))
        self._after_control = self._first if scheme == "always" else self._later

    @property
    def vocab_size(self) -> int:
        """Ids of the vocabulary and of all added tokens."""
        return self._vocab_size

    def encode(self, text: str) -> list[int]:
        """Token ids of a text that stands alone."""
        return self.encode_after("nothing", text)

    def encode_after(self, preceding: Preceding, text: str) -> list[int]:
        """Token ids of a piece of text, given what stands before it.

        SentencePiece tokenizers put a space before a text; which pieces count as the start of one depends on the
        tokenizer: only the very first, or each that follows a control token, but never a mere continuation.
        """
        tokenizer = {"nothing": self._first, "control": self._after_control, "text": self._later}[preceding]
        encoding = tokenizer.encode(_valid_unicode(text), add_special_tokens=False)
        token_ids: list[int] = encoding.ids
        if self._control_names.keys().isdisjoint(token_ids):
            return token_ids
        return self._respell(text, token_ids, encoding.offsets)

    def _respell(self, text: str, token_ids: Sequence[int], offsets: Sequence[tuple[int, int]]) -> list[int]:
        """Replace control tokens that the vocabulary itself holds by their characters.

        A character without a token of its own, where the tokenizer would give its unknown token, gives nothing.
        """
        text = _valid_unicode(text)
        result: list[int] = []
        for token_id, (start, end) in zip(token_ids, offsets, strict=True):
            if token_id not in self._control_names:
                result.append(token_id)
                continue
            for character in text[start:end]:
                spelled: list[int] = self._later.encode(character, add_special_tokens=False).ids
                result += [token for token in spelled if token not in self._control_names]
        return result

    def decode(self, token_ids: Sequence[int]) -> str:
        """The tokens' bytes as text; a SentencePiece reply keeps the space that begins its first word."""
        return b"".join(map(self.shown_bytes, token_ids)).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The token's bytes; none for the unused ids between the vocabulary's end and the model's last row."""
        return self._bytes.get(token_id, b"")

    def shown_bytes(self, token_id: int) -> bytes:
        """See `TextCodec`."""
        return b"" if token_id in self._hidden else self.token_bytes(token_id)


def _is_control(token: Mapping[str, Any]) -> bool:
    return bool(token["special"]) or bool(token["content"].replace(_METASPACE, " ").strip())


def _valid_unicode(text: str) -> str:
    """Lone surrogates, which JSON can smuggle in but UTF-8 cannot hold, become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _parts(component: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """A pipeline component of tokenizer.json with sequences laid flat."""
    if component is None:
        return []
    for key in ("normalizers", "pretokenizers", "decoders"):
        if key in component:
            return [part for child in component[key] for part in _parts(child)]
    return [component]


def _drop_prefix_space(spec: dict[str, Any]) -> Literal["first", "always"] | None:
    """Change `spec` so that no space is put before a text; say where it was put until now."""
    scheme: Literal["first", "always"] | None = None
    if spec["normalizer"] is not None:
        normalizers = _parts(spec["normalizer"])
        kept = [part for part in normalizers if part["type"] != "Prepend"]
        if len(kept) < len(normalizers):
            spec["normalizer"] = {"type": "Sequence", "normalizers": kept}
            scheme = "always"
    for part in _parts(spec["pre_tokenizer"]):
        if part["type"] == "Metaspace" and part["prepend_scheme"] != "never":
            scheme = "first" if part["prepend_scheme"] == "first" else "always"
            part["prepend_scheme"] = "never"  # type: ignore[index]
        elif part["type"] == "ByteLevel" and part["add_prefix_space"]:
            scheme = "always"
            part["add_prefix_space"] = False  # type: ignore[index]
    return scheme


def _token_bytes(tokenizer: Tokenizer, spec: Mapping[str, Any], control_names: Mapping[int, str]) -> dict[int, bytes]:
    """Exact bytes of every token, by the rule that the tokenizer's decoder follows."""
    decoders = _parts(spec["decoder"])
    kinds = {decoder["type"] for decoder in decoders}
    added = {token["id"]: token["content"].encode() for token in spec["added_tokens"]}
    vocab: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    if "ByteLevel" in kinds:
        to_byte = _byte_level_alphabet()
        table = {
            token_id: bytes(to_byte[character] for character in token)
            for token, token_id in vocab.items()
            if token_id not in added and all(character in to_byte for character in token)
        }
    else:
        metaspace = "Metaspace" in kinds or any(
            decoder["type"] == "Replace" and decoder["pattern"].get("String") == _METASPACE for decoder in decoders
        )
        table = {i: _piece_bytes(token, "ByteFallback" in kinds, metaspace) for token, i in vocab.items()}
    return table | added | {token_id: name.encode() for token_id, name in control_names.items()}


def _piece_bytes(token: str, byte_fallback: bool, metaspace: bool) -> bytes:
    """Bytes of a SentencePiece token: `<0xE2>` is one byte, `▁the` is " the"."""
    if byte_fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    return token.replace(_METASPACE, " ").encode() if metaspace else token.encode()


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes (Radford et al. 2019): byte b is the character chr(b), or one
    from U+0100 on where chr(b) is blank or a control character."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
