"""Text that arrives in parts, and ids that come one by one."""

import codecs
from collections.abc import Callable, Iterable, Iterator

from firsthand.llm.tokenizer.patterns import last_safe_cut

_BLOCK_CHARACTERS = 1 << 20


def cut_blocks(parts: Iterable[str], block: int = _BLOCK_CHARACTERS) -> Iterator[str]:
    """The same text in blocks that can be encoded one by one, wherever the parts were cut.

    Holds about `block` characters and one part, or the longest run in which the patterns leave no
    sure place to cut, if that is longer: a megabyte of letters without a space is one piece.
    """
    waiting: list[str] = []
    length, limit = 0, block
    for part in parts:
        waiting.append(part)
        length += len(part)
        if length < limit:
            continue
        joined = "".join(waiting)
        cut = last_safe_cut(joined)
        if cut:
            yield joined[:cut]
        waiting, length = [joined[cut:]], len(joined) - cut
        # Doubling keeps the search linear in total where no cut is found for long.
        limit = max(block, 2 * length)
    if length:
        yield "".join(waiting)


class StreamDecoder:
    """Ids one by one to text: gives each character as soon as its last byte is there."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, identity: int) -> str:
        """The characters that this token completes; often the token's text, sometimes "".

        Raises:
            TokenizerError: no token has this id.
        """
        return self._decoder.decode(self._token_bytes(int(identity)))

    def finish(self) -> str:
        """What is left: U+FFFD for a character that was cut off, else ""."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
