"""What `firsthand tokenizer inspect` shows, as plain data: tokens, merge trees, the trade-off."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from firsthand.llm.tokenizer.errors import TokenizerError
from firsthand.llm.tokenizer.patterns import split, to_utf8
from firsthand.llm.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenView:
    """One token in its text."""

    identity: int
    """The id."""
    text: str
    """Its bytes as text; U+FFFD for part of a character."""
    start: int
    """Offset of its first byte in the UTF-8 of the text."""
    end: int
    """Offset after its last byte."""
    piece: int
    """Number of the piece that the pattern put it in; special tokens are pieces of their own."""
    color: int
    """0 to color_count - 1, never that of the token before."""
    special: bool
    """Whether it is a special token."""


@dataclass(frozen=True)
class MergeNode:
    """A token and the two tokens it was merged from."""

    identity: int
    """The id."""
    text: str
    """Its bytes as text; U+FFFD for part of a character."""
    rank: int | None
    """Which merge made it, from 0; None for a byte."""
    parts: tuple["MergeNode", ...]
    """Left and right half; empty for a byte."""


@dataclass(frozen=True)
class TradeOff:
    """One size of vocabulary: what it costs in the embedding, what it saves in length."""

    vocabulary_size: int
    """Rows of the embedding."""
    embedding_bytes: int
    """Bytes of the embedding, and of the output matrix if it is not tied to it."""
    tokens: int
    """Tokens of the sample text."""
    bytes_per_token: float
    """UTF-8 bytes of the sample text / tokens."""
    relative_length: float
    """Tokens / tokens of the largest vocabulary in the table."""


def token_views(
    tokenizer: Tokenizer,
    text: str,
    *,
    allowed_special: Collection[str] | Literal["all"] = (),
    color_count: int = 6,
) -> list[TokenView]:
    """The tokens of a text with their place, in order.

    Raises:
        TokenizerError: as `Tokenizer.encode`; or fewer than two colours.
    """
    if color_count < 2:
        raise TokenizerError(f"color_count is {color_count}; neighbours need at least 2 colours")
    special = set(tokenizer.special_tokens.values())
    views: list[TokenView] = []
    start, piece, piece_ends = 0, -1, _piece_ends(tokenizer, text, allowed_special)
    for number, identity in enumerate(tokenizer.encode(text, allowed_special)):
        token = tokenizer.token_bytes(identity)
        if start == 0 or start in piece_ends:
            piece += 1
        views.append(
            TokenView(
                identity,
                token.decode("utf-8", "replace"),
                start,
                start + len(token),
                piece,
                number % color_count,
                identity in special,
            )
        )
        start += len(token)
    return views


def bytes_per_token(tokenizer: Tokenizer, text: str | bytes) -> float:
    """UTF-8 bytes of a text / its tokens.

    Raises:
        TokenizerError: the text is empty.
    """
    data = text if isinstance(text, bytes) else to_utf8(text)
    if not data:
        raise TokenizerError("an empty text has no bytes per token")
    return len(data) / len(tokenizer.encode_array(data))


def merge_tree(tokenizer: Tokenizer, word: str) -> list[MergeNode]:
    """For each token of a word the merges that made it, down to the bytes."""
    made = {
        identity: (rank, pair)
        for rank, (pair, identity) in reversed(
            list(enumerate(zip(tokenizer.merges, tokenizer.merge_ids, strict=True)))
        )
    }

    def node(identity: int) -> MergeNode:
        rank, pair = made.get(identity, (None, ()))
        text = tokenizer.token_bytes(identity).decode("utf-8", "replace")
        return MergeNode(identity, text, rank, tuple(node(half) for half in pair))

    return [node(identity) for identity in tokenizer.encode(word)]


def vocabulary_trade_off(
    tokenizer: Tokenizer,
    text: str | bytes,
    sizes: Iterable[int],
    *,
    width: int,
    weight_bytes: int = 4,
    tied: bool = True,
) -> list[TradeOff]:
    """A row for each size of vocabulary, measured on a sample text.

    Smaller vocabularies have the first merges of this one, so one training serves all rows.

    Args:
        sizes: none larger than the tokenizer's.
        width: numbers per row of the embedding (d_model).
        weight_bytes: bytes of one weight: 4 for float32, 2 for bfloat16.
        tied: whether the output matrix is the embedding.
    Raises:
        TokenizerError: a size that is too small or too large, no sizes, or an empty text.
    """
    measured: list[tuple[int, int]] = []
    data = text if isinstance(text, bytes) else to_utf8(text)
    for size in sorted(set(sizes)):
        if size > tokenizer.vocabulary_size:
            raise TokenizerError(
                f"a vocabulary of {size} is larger than the {tokenizer.vocabulary_size} trained"
            )
        measured.append((size, len(tokenizer.truncated(size).encode_array(data))))
    if not measured or not data:
        raise TokenizerError("the trade-off needs a text and at least one vocabulary size")
    least = measured[-1][1]
    return [
        TradeOff(
            size,
            size * width * weight_bytes * (1 if tied else 2),
            tokens,
            len(data) / tokens,
            tokens / least,
        )
        for size, tokens in measured
    ]


def _piece_ends(
    tokenizer: Tokenizer, text: str, allowed_special: Collection[str] | Literal["all"]
) -> set[int]:
    ends: set[int] = set()
    offset = 0
    for part, special in tokenizer.special_parts(text, allowed_special):
        pieces: Sequence[str] = [part] if special else split(part, tokenizer.pattern)
        for piece in pieces:
            offset += len(to_utf8(piece))
            ends.add(offset)
    return ends
