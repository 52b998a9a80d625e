"""Text of a stream of tokens, of which nothing is shown that a stop string might still take."""

from __future__ import annotations

from collections.abc import Sequence

from firsthand.llm.tokenizer.streaming import StreamDecoder


class TextStream:
    """Ids to text, up to the first stop string.

    Args:
        decoder: None gives no text.
        stop: strings that end the text; the one that is complete first counts.

    Attributes:
        text: all that has been shown.
        stopped: whether a stop string was found.
    """

    def __init__(self, decoder: StreamDecoder | None, stop: Sequence[str] = ()) -> None:
        self._decoder, self._stop = decoder, tuple(stop)
        self._shown: list[str] = []
        self._held = ""
        self.stopped = False

    @property
    def text(self) -> str:
        """All that has been shown."""
        return "".join(self._shown)

    def push(self, identity: int) -> str:
        """The text that is sure to stay once this token is there."""
        return "" if self._decoder is None else self._take(self._decoder.push(identity))

    def finish(self) -> str:
        """What was held back, when no token follows; U+FFFD for a character cut off."""
        if self._decoder is None or self.stopped:
            return ""
        shown = self._take(self._decoder.finish())
        rest, self._held = self._held, ""
        self._shown.append(rest)
        return shown + rest

    def _take(self, fresh: str) -> str:
        waiting = self._held + fresh
        found = [
            (waiting.find(stop) + len(stop), -len(stop)) for stop in self._stop if stop in waiting
        ]
        if found:
            # As if characters came one by one, so that the cut of the tokens does not matter.
            end, length = min(found)
            self.stopped = True
            shown, self._held = waiting[: end + length], ""
        else:
            kept = self._undecided(waiting)
            shown, self._held = waiting[: len(waiting) - kept], waiting[len(waiting) - kept :]
        if shown:
            self._shown.append(shown)
        return shown

    def _undecided(self, text: str) -> int:
        """The length of the longest end of the text that a stop string starts with."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
