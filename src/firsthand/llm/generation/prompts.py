"""Prompts to ids, checked against the vocabulary and the context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from firsthand.llm.generation.errors import GenerationError
from firsthand.llm.tokenizer.tokenizer import Tokenizer

# The spelling that the data's documents end with, too: what comes after it starts a text.
END_OF_TEXT = "<|endoftext|>"
Prompt = str | Sequence[int]
Truncate = Literal["error", "left"]


def end_of_text(tokenizer: Tokenizer | None) -> int | None:
    """The id of the token between documents, if the tokenizer has one."""
    return None if tokenizer is None else tokenizer.special_tokens.get(END_OF_TEXT)


def prompt_ids(
    prompt: Prompt,
    tokenizer: Tokenizer | None,
    *,
    vocabulary: int,
    context: int,
    max_new_tokens: int,
    truncate: Truncate = "error",
) -> tuple[int, ...]:
    """The ids of a prompt; special tokens are given as ids, in a text they are plain text.

    An empty prompt is the end-of-text token, behind which training saw documents start.

    Args:
        vocabulary: ids are below it.
        context: prompt and text together have at most so many tokens.
        truncate: of a prompt that leaves no room, "left" drops the beginning, so that
            max_new_tokens fit, or half a context if that is less.
    Raises:
        GenerationError: a text without a tokenizer, an empty prompt without an end-of-text token,
            an id that is no token, or a prompt that is too long.
        TokenizerError: a text that UTF-8 cannot carry.
    """
    ids = _ids(prompt, tokenizer)
    if not ids:
        start = end_of_text(tokenizer)
        if start is None:
            raise GenerationError(
                f"the prompt is empty, and there is no {END_OF_TEXT} token to start from"
            )
        ids = [start]
    for place, identity in enumerate(ids):
        if not 0 <= identity < vocabulary:
            raise GenerationError(
                f"id {identity} at position {place} of the prompt is no token: "
                f"ids run from 0 to {vocabulary - 1}"
            )
    if len(ids) < context:
        return tuple(ids)
    if truncate == "error":
        raise GenerationError(
            f"the prompt has {len(ids)} tokens, and the context holds {context} with the text "
            'that follows; truncate="left" would drop its beginning'
        )
    return tuple(ids[-max(1, context - max_new_tokens, context // 2) :])


def _ids(prompt: Prompt, tokenizer: Tokenizer | None) -> list[int]:
    if not isinstance(prompt, str):
        return [int(identity) for identity in prompt]
    if tokenizer is None:
        raise GenerationError("a prompt that is a text needs a tokenizer")
    return tokenizer.encode(prompt)
