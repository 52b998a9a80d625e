"""A model that writes: `firsthand generate`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from firsthand.app.cli.options import (
    DeviceOption,
    MinPOption,
    ModelArgument,
    PenaltyOption,
    StepOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    open_model,
)
from firsthand.app.cli.stack import one_sentence
from firsthand.course.errors import FirsthandError

if TYPE_CHECKING:
    from firsthand.llm.generation.results import Generation, Piece
    from firsthand.llm.generation.sampling import Sampling


def generate(
    model: ModelArgument,
    prompt: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="Default: standard input, or the beginning of a document."),
    ] = None,
    tokens: Annotated[int, typer.Option(help="At most so many new tokens.")] = 200,
    temperature: TemperatureOption = 0.8,
    top_k: TopKOption = 0,
    top_p: TopPOption = 0.95,
    min_p: MinPOption = 0.0,
    repetition_penalty: PenaltyOption = 1.0,
    stop: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="A string that ends the text. Repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed, the same text; -1 is any.")] = -1,
    samples: Annotated[int, typer.Option(help="Texts, one after the other.")] = 1,
    step: StepOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Let a model write, word by word; tokens/s at the end."""
    with one_sentence():
        from firsthand.llm.generation.sampling import Sampling

        if samples < 1:
            raise FirsthandError(f"At least one sample; not {samples}.")
        sampling = Sampling(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            max_new_tokens=tokens,
            stop=tuple(stop or ()),
            seed=seed,
        )
        written = _writer(model, device, step)
        if prompt is None:
            prompt = "" if sys.stdin.isatty() else sys.stdin.read()
        for number in range(samples):
            print(prompt, end="", flush=True)
            for piece in written(prompt, sampling, number):
                print(piece.text, end="", flush=True)
                if piece.result is not None:
                    print(flush=True)
                    print_speed(piece.result)


def _writer(model: Path, device: str, step: int) -> Callable[[str, Sampling, int], Iterator[Piece]]:
    """What gives the pieces of sample i of a prompt: PyTorch, or an engine for integers."""
    from firsthand.llm.quantization.artefact import is_quantized

    if is_quantized(model) and device != "cuda":
        from firsthand.app.cli.serving import opened_model
        from firsthand.llm.inference.decoding import stream as engine_stream
        from firsthand.llm.inference.scheduler import Scheduler

        opened = opened_model(model, "auto", 1, 0, 0, step)
        scheduler = Scheduler(opened.engine, opened.tokenizer)
        return lambda prompt, sampling, number: engine_stream(
            scheduler, [prompt], sampling, first_stream=number
        )
    from firsthand.llm.generation.decoding import Request, stream

    trained = open_model(model, device, step)
    return lambda prompt, sampling, number: stream(
        trained.model,
        [Request(prompt=prompt, sampling=sampling, stream=number)],
        tokenizer=trained.tokenizer,
    )


def print_speed(result: Generation) -> None:
    """What a text took, on standard error."""
    print(
        f"{len(result.ids)} tokens, {result.tokens_per_second:.0f} tokens/s after "
        f"{len(result.prompt)} tokens of prompt in {result.prefill_seconds * 1e3:.0f} ms; "
        f"ended by {result.reason}.",
        file=sys.stderr,
    )
