"""Training a tokenizer: count the pieces of the corpus once, then merge pairs within them."""

from collections.abc import Callable, Iterable
from typing import Literal, get_args

from firsthand.llm.tokenizer.errors import TokenizerError
from firsthand.llm.tokenizer.patterns import PatternName, require_pattern
from firsthand.llm.tokenizer.tokenizer import Tokenizer, require_vocabulary_size
from firsthand.resources import usable_cores

Ties = Literal["smallest_ids", "greatest_bytes"]
Progress = Callable[[str, int, int | None], None]
"""Called with the stage ("counting" or "merging"), how far it is, and the total if it is known."""


def train(
    texts: Iterable[str | bytes],
    vocabulary_size: int,
    *,
    pattern: PatternName = "gpt2",
    special_tokens: Iterable[str] = (),
    minimum_frequency: int = 2,
    ties: Ties = "smallest_ids",
    workers: int | None = None,
    progress: Progress | None = None,
) -> Tokenizer:
    """Learns a vocabulary; the result does not depend on `workers` or on the order of the texts.

    The ids are: the 256 bytes in GPT-2's order, the merges as they are learnt, the special tokens.
    Memory: the different pieces (some 100 bytes for each of their bytes), not the corpus.

    Args:
        texts: documents; no token spans two of them. Special tokens in them are plain text.
        vocabulary_size: bytes, merges and special tokens together. The vocabulary stays smaller if
            no pair is frequent enough any more.
        pattern: "gpt2" or "gpt4".
        special_tokens: spellings, in the order of their ids.
        minimum_frequency: a pair that is seen less often is never merged.
        ties: which of equally frequent pairs is merged: "smallest_ids" as Hugging Face's
            `tokenizers` does, or "greatest_bytes", the greatest (left bytes, right bytes).
        workers: threads that count pieces side by side; one per available core by default.
        progress: for a progress bar.
    Raises:
        TokenizerError: no text at all, a text with a lone surrogate, a setting that is unknown or
            too small.
    """
    require_pattern(pattern)
    specials = list(special_tokens)
    merge_count = require_vocabulary_size(vocabulary_size, len(specials))
    if ties not in get_args(Ties):
        raise TokenizerError(f"ties {ties!r} is unknown: choose one of {', '.join(get_args(Ties))}")
    if minimum_frequency < 0:
        raise TokenizerError(f"minimum_frequency is {minimum_frequency}; it cannot be negative")
    if workers is None:
        workers = usable_cores()
    if workers < 1:
        raise TokenizerError(f"workers is {workers}; at least one has to count")
    # Numba takes longer to import than a short text to encode, so only training needs it at once.
    from firsthand.llm.tokenizer.counting import count_pieces, unpack
    from firsthand.llm.tokenizer.merge_training import learn_merges

    report = progress or (lambda stage, done, total: None)
    table, size = count_pieces(
        texts, pattern, workers, lambda counted: report("counting", counted, None)
    )
    if size == 0:
        raise TokenizerError("the corpus is empty: there is no text to learn a vocabulary from")
    merges = learn_merges(
        unpack(table),
        merge_count,
        minimum_frequency=minimum_frequency,
        greatest_bytes=ties == "greatest_bytes",
        on_merge=lambda learnt: report("merging", learnt, merge_count),
    )
    return Tokenizer(merges, pattern=pattern, special_tokens=specials)
