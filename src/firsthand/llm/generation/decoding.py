"""Generation: prompts in, texts out, whole or piece by piece."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral

from firsthand.llm.generation.batches import Batch
from firsthand.llm.generation.errors import GenerationError
from firsthand.llm.generation.prompts import Prompt, Truncate, end_of_text, prompt_ids
from firsthand.llm.generation.results import Generation, Piece
from firsthand.llm.generation.rows import Row
from firsthand.llm.generation.sampling import Sampling
from firsthand.llm.generation.speculation import Speculation
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.tokenizer.tokenizer import Tokenizer

DEFAULT = Sampling()


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt with settings of its own.

    Attributes:
        prompt: a text, or ids below the vocabulary.
        sampling: how it goes on.
        stream: tells texts of one seed apart, such as several samples of one prompt.
    """

    prompt: Prompt
    sampling: Sampling = DEFAULT
    stream: int = 0


def requests(prompts: Sequence[Prompt], sampling: Sampling, samples: int = 1) -> list[Request]:
    """One request for each sample of each prompt, prompt by prompt, each on its own stream."""
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    return [
        Request(prompt=prompt, sampling=sampling, stream=stream)
        for stream, prompt in enumerate(repeated)
    ]


def stream(
    model: Transformer,
    prompts: Prompt | Sequence[Prompt] | Sequence[Request],
    sampling: Sampling = DEFAULT,
    *,
    tokenizer: Tokenizer | None = None,
    end_tokens: Collection[int] | None = None,
    truncate: Truncate = "error",
    draft: Transformer | None = None,
    draft_tokens: int = 4,
) -> Iterator[Piece]:
    """The new tokens of all texts as they come; the last piece of each text has its record.

    Stop reading at any time: nothing runs in the background.

    Args:
        model: on any device, in its own precision; its mode does not matter.
        prompts: one prompt (a text or ids) or several. A `Request` has its own settings.
        sampling: of the prompts that are no requests; prompt i is on stream i of its seed.
        tokenizer: for texts and stop strings; None works on ids alone.
        end_tokens: ids that end a text; None is the tokenizer's end-of-text token, if any.
        truncate: what to do with a prompt that fills the context: "error", or "left" to drop its
            beginning.
        draft: a smaller model with the same vocabulary, for speculative decoding. The distribution
            of the texts stays the same, not the text of a seed. Texts are decoded one by one.
        draft_tokens: proposed at a time.
    Raises:
        GenerationError: before anything is computed: a prompt, stop strings without a tokenizer,
            a tokenizer or a draft model that does not fit the model. Later: logits that are not
            finite.
    """
    rows, vocabulary = _rows(model, prompts, sampling, tokenizer, end_tokens, truncate)
    if draft is None:
        return Batch(model, rows, vocabulary).pieces() if rows else iter(())
    texts = [Speculation(model, draft, row, vocabulary, draft_tokens) for row in rows]
    return (piece for text in texts for piece in text.pieces())


def generate(
    model: Transformer,
    prompts: Prompt | Sequence[Prompt] | Sequence[Request],
    sampling: Sampling = DEFAULT,
    *,
    tokenizer: Tokenizer | None = None,
    end_tokens: Collection[int] | None = None,
    truncate: Truncate = "error",
    draft: Transformer | None = None,
    draft_tokens: int = 4,
) -> list[Generation]:
    """The texts, in the order of the prompts. Arguments and errors: as `stream`."""
    results: dict[int, Generation] = {}
    pieces = stream(
        model,
        prompts,
        sampling,
        tokenizer=tokenizer,
        end_tokens=end_tokens,
        truncate=truncate,
        draft=draft,
        draft_tokens=draft_tokens,
    )
    for piece in pieces:
        if piece.result is not None:
            results[piece.row] = piece.result
    return [results[row] for row in sorted(results)]


def _rows(
    model: Transformer,
    prompts: Prompt | Sequence[Prompt] | Sequence[Request],
    sampling: Sampling,
    tokenizer: Tokenizer | None,
    end_tokens: Collection[int] | None,
    truncate: Truncate,
) -> tuple[list[Row], int]:
    vocabulary = model.config.vocab_size
    if tokenizer is not None:
        if tokenizer.vocabulary_size > vocabulary:
            raise GenerationError(
                f"the tokenizer has {tokenizer.vocabulary_size} tokens and the model "
                f"{vocabulary}: they do not belong together"
            )
        # A model may have more rows, to a round number; they are no tokens.
        vocabulary = tokenizer.vocabulary_size
    if end_tokens is None:
        end = end_of_text(tokenizer)
        end_tokens = () if end is None else (end,)
    rows = []
    for number, request in enumerate(_requests(prompts, sampling)):
        if request.sampling.stop and tokenizer is None:
            raise GenerationError("stop strings need a tokenizer")
        try:
            prompt = prompt_ids(
                request.prompt,
                tokenizer,
                vocabulary=vocabulary,
                context=model.config.context,
                max_new_tokens=request.sampling.max_new_tokens,
                truncate=truncate,
            )
        except GenerationError as error:
            raise GenerationError(f"prompt {number}: {error}") from None
        rows.append(
            Row(
                number=number,
                prompt=prompt,
                sampling=request.sampling,
                stream=request.stream,
                tokenizer=tokenizer,
                end_tokens=frozenset(end_tokens),
                context=model.config.context,
            )
        )
    return rows, vocabulary


def _requests(
    prompts: Prompt | Sequence[Prompt] | Sequence[Request], sampling: Sampling
) -> list[Request]:
    listed = [prompts] if isinstance(prompts, str) or _is_ids(prompts) else list(prompts)
    return [
        item
        if isinstance(item, Request)
        else Request(prompt=item, sampling=sampling, stream=number)  # type: ignore[arg-type]
        for number, item in enumerate(listed)
    ]


def _is_ids(prompts: Prompt | Sequence[Prompt] | Sequence[Request]) -> bool:
    """Whether this is one prompt; an empty list is no prompts, and [[]] one empty prompt."""
    return len(prompts) > 0 and isinstance(prompts[0], Integral)
