"""The tokenizer: text or bytes to ids and back, for one list of merges and one pattern.

Plain text never becomes a special token: their ids come from no merge, and their spelling is looked
for only where the caller allows it.
"""

import hashlib
import json
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import regex
from numpy.typing import NDArray

from firsthand.llm.tokenizer import naive
from firsthand.llm.tokenizer.byte_alphabet import BYTE_IDS
from firsthand.llm.tokenizer.errors import TokenizerError
from firsthand.llm.tokenizer.patterns import require_pattern, to_utf8
from firsthand.llm.tokenizer.streaming import StreamDecoder, cut_blocks

if TYPE_CHECKING:
    from firsthand.llm.tokenizer.encoding import PieceEncoder

Ids = NDArray[np.uint32]
# Below this many bytes the plain code answers sooner than the compiled one can be loaded; once it
# is loaded it serves every length.
PLAIN_BYTES = 2048


class Tokenizer:
    """Byte-level BPE with special tokens. Immutable; one instance may serve several threads.

    Args:
        merges: pairs of ids, in the order they were learnt.
        pattern: name of the pre-tokenization pattern, "gpt2" or "gpt4".
        special_tokens: ids by spelling; or spellings only, which get the ids after the merges.
        byte_ids: id of each byte, (256,); GPT-2's order by default.
        merge_ids: id of the token that each merge makes; 256, 257, ... by default.
    Raises:
        TokenizerError: an unknown pattern, a merge of ids that do not exist yet, ids given twice.
    """

    def __init__(
        self,
        merges: Iterable[tuple[int, int]],
        *,
        pattern: str = "gpt2",
        special_tokens: Mapping[str, int] | Iterable[str] = (),
        byte_ids: Sequence[int] = BYTE_IDS,
        merge_ids: Sequence[int] | None = None,
    ) -> None:
        require_pattern(pattern)
        self.pattern = pattern
        self.merges = [(int(left), int(right)) for left, right in merges]
        self.byte_ids = [int(i) for i in byte_ids]
        if merge_ids is None:
            merge_ids = range(256, 256 + len(self.merges))
        self.merge_ids = [int(i) for i in merge_ids]
        tokens = _token_bytes(self.merges, self.byte_ids, self.merge_ids)
        if not isinstance(special_tokens, Mapping):
            special_tokens = _numbered(special_tokens, 1 + max(tokens))
        self.special_tokens: dict[str, int] = dict(special_tokens)
        for text, identity in self.special_tokens.items():
            if not text:
                raise TokenizerError("a special token is empty")
            utf8 = to_utf8(text)
            if identity in tokens:
                raise TokenizerError(
                    f"special token {text!r} has the id {identity}, which is already that of "
                    f"{tokens[identity]!r}"
                )
            tokens[identity] = utf8
        _require_range(tokens)
        self._tokens = tokens
        self._loading = threading.Lock()
        self._compiled: PieceEncoder | None = None

    @property
    def vocabulary_size(self) -> int:
        """The greatest id plus one: the number of rows that an embedding needs."""
        return 1 + max(self._tokens)

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) over all that decides the ids: pattern, merges, ids, special tokens."""
        record = [
            self.pattern,
            self.byte_ids,
            [list(pair) for pair in self.merges],
            self.merge_ids,
            sorted(self.special_tokens.items()),
        ]
        return hashlib.sha256(json.dumps(record, separators=(",", ":")).encode()).hexdigest()

    @cached_property
    def ranks(self) -> dict[tuple[int, int], tuple[int, int]]:
        """(rank, id of the result) by pair of ids."""
        return {
            pair: (rank, joined)
            for rank, (pair, joined) in enumerate(zip(self.merges, self.merge_ids, strict=True))
        }

    @property
    def is_standard(self) -> bool:
        """Whether bytes have GPT-2's ids and merge k the id 256 + k, as `train` numbers them."""
        return self.byte_ids == list(BYTE_IDS) and self.merge_ids == list(
            range(256, 256 + len(self.merges))
        )

    def token_bytes(self, identity: int) -> bytes:
        """The bytes of one token; of a special token its spelling.

        Raises:
            TokenizerError: no token has this id.
        """
        try:
            return self._tokens[identity]
        except KeyError:
            raise TokenizerError(
                f"id {identity} is no token: ids run from 0 to {self.vocabulary_size - 1}"
            ) from None

    def tokens(self) -> dict[int, bytes]:
        """The bytes of every token by id, special ones included; a fresh dictionary."""
        return dict(sorted(self._tokens.items()))

    def truncated(self, vocabulary_size: int) -> "Tokenizer":
        """The tokenizer that training to a smaller vocabulary would have given.

        Merges are learnt one after the other, so a smaller vocabulary has the first of them.

        Raises:
            TokenizerError: the size does not hold the bytes and special tokens, or ids are not
                numbered as `train` numbers them.
        """
        if not self.is_standard:
            raise TokenizerError("only a tokenizer numbered as `train` does it can be truncated")
        kept = require_vocabulary_size(vocabulary_size, len(self.special_tokens))
        specials = sorted(self.special_tokens, key=self.special_tokens.__getitem__)
        return Tokenizer(self.merges[:kept], pattern=self.pattern, special_tokens=specials)

    # Encoding

    def encode(
        self, text: str, allowed_special: Collection[str] | Literal["all"] = ()
    ) -> list[int]:
        """The ids of `text`.

        Args:
            text: any string that UTF-8 can carry.
            allowed_special: spellings of special tokens to recognise in the text, or "all"; what is
                not named here is encoded as the plain text that it is.
        Raises:
            TokenizerError: a lone surrogate in the text, or an unknown special token.
        """
        if not allowed_special:
            return self._encode_plain(to_utf8(text))
        ids: list[int] = []
        for part, special in self.special_parts(text, allowed_special):
            ids += [self.special_tokens[part]] if special else self._encode_plain(to_utf8(part))
        return ids

    def special_parts(
        self, text: str, allowed_special: Collection[str] | Literal["all"]
    ) -> list[tuple[str, bool]]:
        """The text cut at the special tokens that are allowed: (part, whether it is special).

        Raises:
            TokenizerError: an unknown special token.
        """
        parts = self._special_splitter(allowed_special).split(text)
        return [(part, i % 2 == 1) for i, part in enumerate(parts) if part]

    def encode_batch(self, texts: Iterable[str | bytes]) -> list[list[int]]:
        """The ids of each text; no token spans two texts and none is special."""
        ids, ends = self.encode_documents(texts)
        flat = ids.tolist()
        return [flat[start:end] for start, end in pairwise([0, *ends.tolist()])]

    def encode_array(self, text: str | bytes) -> Ids:
        """The ids of a text, or of bytes of any kind, without special tokens: (tokens,) uint32."""
        return self.encode_documents([text])[0]

    def encode_documents(self, texts: Iterable[str | bytes]) -> tuple[Ids, NDArray[np.int64]]:
        """All texts in one call, which is the fastest way to encode many short ones.

        Returns:
            The ids of all texts, (tokens,), and where each text ends among them, (texts,).
        """
        documents = [text if isinstance(text, bytes) else to_utf8(text) for text in texts]
        if self._compiled is None and sum(map(len, documents)) < PLAIN_BYTES:
            parts = [self._encode_plain(document) for document in documents]
            ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
            return np.array([i for part in parts for i in part], np.uint32), ends
        return self._piece_encoder().encode(documents)

    def encode_piece(self, piece: bytes) -> list[int]:
        """The ids of bytes that the pattern would not cut, by the plain code."""
        return naive.encode_piece([self.byte_ids[byte] for byte in piece], self.ranks)

    def encode_stream(self, texts: Iterable[str]) -> Iterator[Ids]:
        """The ids of one long text that arrives in parts, as arrays: joined they equal `encode`.

        Holds about a million characters at a time, or as many as the longest run in which the
        pattern leaves no sure place to cut (a megabyte of letters without a space is one piece).
        Where the parts are cut makes no difference.
        """
        return map(self.encode_array, cut_blocks(texts))

    # Decoding

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of the tokens, joined.

        Raises:
            TokenizerError: an id that is no token, with its position.
        """
        listed: list[int] = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
        try:
            return b"".join(map(self._tokens.__getitem__, listed))
        except KeyError:
            place = next(i for i, identity in enumerate(listed) if identity not in self._tokens)
            raise TokenizerError(
                f"id {listed[place]} at position {place} is no token: "
                f"ids run from 0 to {self.vocabulary_size - 1}"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the tokens; bytes that are no UTF-8 are shown as U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def stream_decoder(self) -> StreamDecoder:
        """A decoder that takes ids one by one and never gives part of a character."""
        return StreamDecoder(self.token_bytes)

    # Files

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Reads a file that `save` has written.

        Raises:
            TokenizerError: the file is damaged or of another kind; names the file and the place.
            OSError: the file cannot be read.
        """
        from firsthand.llm.tokenizer.formats import read_tokenizer

        return read_tokenizer(Path(path))

    def save(self, path: str | Path) -> None:
        """Writes readable JSON; an existing file is replaced only once the new one is whole."""
        from firsthand.llm.tokenizer.formats import write_tokenizer

        write_tokenizer(self, Path(path))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def __repr__(self) -> str:
        return (
            f"Tokenizer({self.vocabulary_size} tokens, pattern={self.pattern!r}, "
            f"special_tokens={list(self.special_tokens)})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # For handing an instance to another process: what was compiled and cached stays here.
        return _restored, (
            self.merges,
            self.pattern,
            self.special_tokens,
            self.byte_ids,
            self.merge_ids,
        )

    def _encode_plain(self, utf8: bytes) -> list[int]:
        if self._compiled is not None or len(utf8) >= PLAIN_BYTES:
            compiled: list[int] = self._piece_encoder().encode([utf8])[0].tolist()
            return compiled
        return [
            i for piece in naive.split_bytes(utf8, self.pattern) for i in self.encode_piece(piece)
        ]

    def _piece_encoder(self) -> "PieceEncoder":
        with self._loading:
            if self._compiled is None:
                from firsthand.llm.tokenizer.encoding import PieceEncoder

                self._compiled = PieceEncoder(
                    self.merges, self.merge_ids, self.byte_ids, self.pattern
                )
        return self._compiled

    def _special_splitter(self, allowed: Collection[str] | Literal["all"]) -> "regex.Pattern[str]":
        names = list(self.special_tokens) if allowed == "all" else list(allowed)
        for name in names:
            if name not in self.special_tokens:
                raise TokenizerError(
                    f"{name!r} is no special token of this tokenizer: it has "
                    f"{', '.join(map(repr, self.special_tokens)) or 'none'}"
                )
        # The longest first, so that a token that starts like another one is not cut short.
        names.sort(key=len, reverse=True)
        return regex.compile("(" + ("|".join(map(regex.escape, names)) or r"(?!)") + ")")


def require_vocabulary_size(vocabulary_size: int, special_count: int) -> int:
    """The number of merges that a vocabulary has room for.

    Raises:
        TokenizerError: it has no room for the 256 bytes and the special tokens.
    """
    least = 256 + special_count
    if vocabulary_size < least:
        raise TokenizerError(
            f"a vocabulary of {vocabulary_size} is too small: 256 bytes and {special_count} "
            f"special tokens need at least {least}"
        )
    return vocabulary_size - least


def _numbered(names: Iterable[str], first: int) -> dict[str, int]:
    listed = list(names)
    for name in listed:
        if listed.count(name) > 1:
            raise TokenizerError(f"special token {name!r} is given twice")
    return {name: first + i for i, name in enumerate(listed)}


def _token_bytes(
    merges: list[tuple[int, int]], byte_ids: list[int], merge_ids: list[int]
) -> dict[int, bytes]:
    if len(byte_ids) != 256 or len(set(byte_ids)) != 256:
        raise TokenizerError("byte_ids must be 256 different ids")
    if len(merge_ids) != len(merges):
        raise TokenizerError(f"{len(merges)} merges, but {len(merge_ids)} ids for them")
    tokens = {identity: bytes([byte]) for byte, identity in enumerate(byte_ids)}
    for rank, ((left, right), joined) in enumerate(zip(merges, merge_ids, strict=True)):
        if left not in tokens or right not in tokens:
            raise TokenizerError(
                f"merge {rank} joins the ids {left} and {right}, but no earlier merge made "
                f"{left if left not in tokens else right}"
            )
        text = tokens[left] + tokens[right]
        if tokens.setdefault(joined, text) != text:
            raise TokenizerError(f"merge {rank} makes the id {joined}, which is taken")
    if len(set(merges)) < len(merges):
        raise TokenizerError("a merge is given twice")
    _require_range(tokens)
    return tokens


def _require_range(tokens: dict[int, bytes]) -> None:
    if min(tokens) < 0 or max(tokens) >= 1 << 23:
        raise TokenizerError(
            f"ids must lie between 0 and 2**23 - 1, not from {min(tokens)} to {max(tokens)}"
        )


def _restored(
    merges: list[tuple[int, int]],
    pattern: str,
    special_tokens: dict[str, int],
    byte_ids: list[int],
    merge_ids: list[int],
) -> Tokenizer:
    return Tokenizer(
        merges,
        pattern=pattern,
        special_tokens=special_tokens,
        byte_ids=byte_ids,
        merge_ids=merge_ids,
    )
