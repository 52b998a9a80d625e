"""The log-probabilities of a text's tokens, in the shapes of both endpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from firsthand.llm.generation.results import Piece
from firsthand.llm.inference.server.errors import Record
from firsthand.llm.tokenizer.tokenizer import Tokenizer

# JSON has no infinity.
LEAST = -9999.0


@dataclass(frozen=True)
class Entry:
    """A token in the text: where it begins there, in characters, and how probable it was."""

    token: int
    offset: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Entries:
    """Collects the entries of one text until their characters are shown."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._decoder = tokenizer, tokenizer.stream_decoder()
        self._offset = self._shown = 0
        self._held: list[Entry] = []

    def take(self, piece: Piece) -> list[Entry]:
        """What goes with this piece's text.

        A token of which no character is shown, such as one of a stop string, has no entry; nor
        has the token that ends a text.
        """
        ended = piece.result is not None and piece.result.reason == "end"
        if not ended:
            logprob = LEAST if piece.logprob is None else max(LEAST, piece.logprob)
            start, self._offset = self._offset, self._offset + len(self._decoder.push(piece.token))
            content = _characters(self._tokenizer, piece.token)
            if content is not None:
                # What stands before them is of a character that the token before has cut off.
                start = self._offset - len(content)
            self._held.append(Entry(piece.token, start, logprob, piece.top))
        self._shown += len(piece.text)
        ready = [entry for entry in self._held if entry.offset < self._shown]
        self._held = [entry for entry in self._held if entry.offset >= self._shown]
        return ready


def chat_logprobs(entries: Sequence[Entry], tokenizer: Tokenizer) -> Record:
    """As the chat endpoint shows them."""

    def one(token: int, logprob: float) -> Record:
        content = tokenizer.token_bytes(token)
        return {
            "token": content.decode("utf-8", "replace"),
            "logprob": max(LEAST, logprob),
            "bytes": list(content),
        }

    content = [
        {
            **one(entry.token, entry.logprob),
            "top_logprobs": [one(token, logprob) for token, logprob in entry.top],
        }
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(entries: Sequence[Entry], tokenizer: Tokenizer, start: int) -> Record:
    """As the completions endpoint shows them; `start` is the length of an echoed prompt."""
    top = [
        {
            _spelling(tokenizer, token): max(LEAST, logprob)
            for token, logprob in (*entry.top, (entry.token, entry.logprob))
        }
        for entry in entries
    ]
    return {
        "tokens": [_spelling(tokenizer, entry.token) for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": top if any(entry.top for entry in entries) else None,
        "text_offset": [start + entry.offset for entry in entries],
    }


def _spelling(tokenizer: Tokenizer, token: int) -> str:
    """A token's text; bytes that are no characters by themselves are written out."""
    content = _characters(tokenizer, token)
    if content is not None:
        return content
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in tokenizer.token_bytes(token))


def _characters(tokenizer: Tokenizer, token: int) -> str | None:
    """The token's characters, or None where its bytes are none by themselves."""
    try:
        return tokenizer.token_bytes(token).decode()
    except UnicodeDecodeError:
        return None
