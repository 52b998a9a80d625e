"""Export for `tiktoken`: as an encoding in memory, and as a file of ranks."""

import base64
from pathlib import Path
from typing import TYPE_CHECKING

from firsthand.llm.tokenizer.errors import TokenizerError
from firsthand.llm.tokenizer.formats import write_text
from firsthand.llm.tokenizer.patterns import PATTERNS
from firsthand.llm.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tiktoken


def mergeable_ranks(tokenizer: Tokenizer) -> dict[bytes, int]:
    """Ids by token, special ones left out; tiktoken merges in the order of these numbers.

    Raises:
        TokenizerError: the ids do not grow in the order of the merges, so that their order cannot
            stand for it.
    """
    if tokenizer.merge_ids != sorted(set(tokenizer.merge_ids)):
        raise TokenizerError(
            "tiktoken merges in the order of the ids, but these ids do not grow with the merges"
        )
    special = set(tokenizer.special_tokens.values())
    return {
        token: identity for identity, token in tokenizer.tokens().items() if identity not in special
    }


def to_tiktoken(tokenizer: Tokenizer, name: str = "firsthand") -> "tiktoken.Encoding":
    """The same tokenizer as a `tiktoken.Encoding` (needs the `tiktoken` package)."""
    import tiktoken

    return tiktoken.Encoding(
        name,
        pat_str=PATTERNS[tokenizer.pattern],
        mergeable_ranks=mergeable_ranks(tokenizer),
        special_tokens=tokenizer.special_tokens,
    )


def write_tiktoken(tokenizer: Tokenizer, path: Path | str) -> None:
    """Writes the ranks as `tiktoken.load.load_tiktoken_bpe` reads them: base64 and rank per line.

    The file has no place for the pattern and the special tokens; they go to `tiktoken.Encoding`.
    """
    lines = [
        f"{base64.b64encode(token).decode()} {rank}\n"
        for token, rank in mergeable_ranks(tokenizer).items()
    ]
    write_text(Path(path), "".join(lines))
