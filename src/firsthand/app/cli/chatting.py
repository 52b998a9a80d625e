"""A talk in the terminal: `firsthand chat`."""

from __future__ import annotations

import select
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Annotated

import typer

from firsthand.app.cli.options import (
    MinPOption,
    PenaltyOption,
    StepOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
)
from firsthand.app.cli.serving import (
    ContextOption,
    EngineOption,
    ServedArgument,
    ThreadsOption,
    opened_model,
)
from firsthand.app.cli.stack import one_sentence
from firsthand.app.cli.terminal import interactive
from firsthand.app.cli.writing import print_speed

if TYPE_CHECKING:
    from firsthand.llm.inference.conversation import Conversation

# A line that comes so soon after another was pasted with it.
PASTE_SECONDS = 0.05
HELP = "/reset forgets the talk, /quit ends it. Lines that are pasted together are one turn."


def chat(
    model: ServedArgument,
    system: Annotated[str, typer.Option(help="What the model is told first.")] = "",
    tokens: Annotated[int, typer.Option(help="Of an answer, at most.")] = 512,
    temperature: TemperatureOption = 0.8,
    top_k: TopKOption = 0,
    top_p: TopPOption = 0.95,
    min_p: MinPOption = 0.0,
    repetition_penalty: PenaltyOption = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed, the same talk; -1 is any.")] = -1,
    context: ContextOption = 0,
    engine: EngineOption = "auto",
    threads: ThreadsOption = 0,
    step: StepOption = 0,
) -> None:
    """Talk with a model in the terminal; tokens/s after each answer.

    From a pipe each line is a turn. Ctrl-C stops an answer. /reset forgets the talk, /quit ends it.
    """
    with one_sentence():
        from firsthand.llm.generation.sampling import Sampling
        from firsthand.llm.inference.conversation import Conversation
        from firsthand.llm.inference.scheduler import Scheduler

        sampling = Sampling(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            max_new_tokens=tokens,
            seed=seed,
        )
        opened = opened_model(model, engine, 1, context, threads, step)
        with closing(opened.engine):
            scheduler = Scheduler(opened.engine, opened.tokenizer)
            talk = Conversation(scheduler, sampling, system=system)
            _say(f"{model.resolve().name}: {opened.how}. {HELP}")
            if not talk.templated:
                _say("This model knows no turns: it goes on with the text as it stands.")
                if system:
                    _say("--system is left out.")
            _talk(talk)


def _talk(talk: Conversation) -> None:
    for turn in _turns():
        command = turn.strip()
        if command == "/quit":
            return
        if command == "/reset":
            talk.reset()
            _say("The talk begins anew.")
        elif command.startswith("/") and " " not in command and "\n" not in command:
            _say(f"There is no command {command}. {HELP}")
        elif command:
            _answer(talk, turn)


def _answer(talk: Conversation, turn: str) -> None:
    # What the stack refuses ends this turn and not the talk.
    try:
        pieces = talk.say(turn)
    except ValueError as error:
        _say(f"{error}.")
        return
    if talk.dropped:
        what = "turns" if talk.templated else "tokens"
        _say(f"The context is full: the oldest {talk.dropped} {what} are left out.")
    with closing(pieces), suppress(KeyboardInterrupt):
        for piece in pieces:
            print(piece.text, end="", flush=True)
            if piece.result is not None:
                print(flush=True)
                print_speed(piece.result)
                return
    print(flush=True)
    _say("Stopped.")


def _turns() -> Iterator[str]:
    """What is typed, until the end of input: a line, or the lines of a paste."""
    if not interactive():
        for line in sys.stdin:
            yield line.rstrip("\n")
        return
    with suppress(ImportError):
        import readline  # noqa: F401  (editing and history of the typed line)
    while True:
        try:
            lines = [input("> ")]
            while select.select([sys.stdin], [], [], PASTE_SECONDS)[0]:
                lines.append(input())
        except EOFError:
            print()
            return
        yield "\n".join(lines)


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
