"""Byte-level BPE in its shortest form: the version to learn from, and the oracle of the fast one.

Training counts all pairs of neighbours, joins the most frequent one everywhere, and does it again.
Encoding joins, within one piece, the neighbours whose merge was learnt first, until none is left.
Sources: Gage 1994, "A New Algorithm for Data Compression"; Sennrich et al. 2016, section 3.2.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise

from firsthand.llm.tokenizer.byte_alphabet import BYTE_IDS, BYTE_ORDER
from firsthand.llm.tokenizer.patterns import split

Pair = tuple[int, int]
NEVER = (sys.maxsize, 0)


def join(symbols: list[int], pair: Pair, joined: int) -> list[int]:
    """`symbols` with `joined` in place of each occurrence of `pair`, taken from left to right."""
    result, i = [], 0
    while i < len(symbols):
        if tuple(symbols[i : i + 2]) == pair:
            result.append(joined)
            i += 2
        else:
            result.append(symbols[i])
            i += 1
    return result


def train(
    texts: Iterable[str | bytes],
    merge_count: int,
    *,
    pattern: str = "gpt2",
    minimum_frequency: int = 2,
    ties: str = "smallest_ids",
) -> list[Pair]:
    """At most `merge_count` merges as pairs of ids; merge k makes the token 256 + k.

    Args:
        texts: documents; bytes that are no UTF-8 count as signs.
        minimum_frequency: a pair seen less often is never merged.
        ties: of equally frequent pairs, "smallest_ids" takes the smallest (left id, right id),
            "greatest_bytes" the greatest (left bytes, right bytes).
    """
    pieces = Counter(piece for text in texts for piece in split_bytes(text, pattern))
    words = [([BYTE_IDS[byte] for byte in piece], count) for piece, count in pieces.items()]
    tokens = [bytes([byte]) for byte in BYTE_ORDER]
    merges: list[Pair] = []
    while len(merges) < merge_count:
        counts: Counter[Pair] = Counter()
        for symbols, count in words:
            for pair in pairwise(symbols):
                counts[pair] += count
        most = max(counts.values(), default=0)
        if most < max(minimum_frequency, 1):
            break
        tied = [pair for pair, count in counts.items() if count == most]
        if ties == "smallest_ids":
            best = min(tied)
        else:
            best = max(tied, key=lambda pair: (tokens[pair[0]], tokens[pair[1]]))
        words = [(join(symbols, best, len(tokens)), count) for symbols, count in words]
        merges.append(best)
        tokens.append(tokens[best[0]] + tokens[best[1]])
    return merges


def encode_piece(symbols: list[int], ranks: Mapping[Pair, Pair]) -> list[int]:
    """Applies merges to the byte ids of one piece; `ranks[pair]` is (rank, id of the result)."""
    while len(symbols) > 1:
        merges = [ranks.get(pair, NEVER) for pair in pairwise(symbols)]
        best = min(merges)
        if best == NEVER:
            break
        i = merges.index(best)
        symbols = [*symbols[:i], best[1], *symbols[i + 2 :]]
    return symbols


def split_bytes(text: str | bytes, pattern: str) -> list[bytes]:
    """The pieces of `text` as UTF-8. A byte that is part of no valid character is a sign."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    return [piece.encode("utf-8", "surrogateescape") for piece in split(text, pattern)]
