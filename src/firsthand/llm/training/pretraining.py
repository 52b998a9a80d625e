"""A run from its config to its end: the text, the model, the loop, and what stays of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from firsthand.llm.data.manifest import Manifest
from firsthand.llm.data.preparation import END_OF_TEXT
from firsthand.llm.model.config import resized
from firsthand.llm.model.hugging_face import ExchangeError, save_llama
from firsthand.llm.model.parts import Parts
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.tokenizer import Tokenizer
from firsthand.llm.tokenizer.hugging_face import write_hugging_face
from firsthand.llm.training.assembly import assemble
from firsthand.llm.training.config import RunConfig
from firsthand.llm.training.corpus import gzip_bits_per_byte, open_corpus, prepare_corpus
from firsthand.llm.training.distributed import World, joined_world
from firsthand.llm.training.errors import TrainingError
from firsthand.llm.training.journal import Nobody, RunJournal, Watcher, open_journal
from firsthand.llm.training.loop import Training, train
from firsthand.llm.training.memory import explained_memory
from firsthand.llm.training.next_token import Corpus, NextToken
from firsthand.llm.training.random_state import seed_random
from firsthand.llm.training.report.page import write_report
from firsthand.llm.training.runs import (
    Run,
    create_run,
    data_identity,
    lengthen_run,
    lock_run,
    open_run,
)

SHARDS = "data"


def start_run(
    folder: Path,
    config: RunConfig,
    parts: Parts,
    *,
    watcher: Watcher | None = None,
    record: Mapping[str, Any] | None = None,
) -> Run:
    """Make a run and train it to its end, or until the watcher asks for a stop.

    Args:
        folder: missing or empty.
        config: of the whole run.
        parts: the code of the model and of the training.
        watcher: sees it happen.
        record: more for run.json, such as whose parts these are.
    Raises:
        TrainingError: the folder is in use, the config does not fit the machine or the text, the
            loss is not finite, memory or disk is full.
        DataError, TokenizerError: the text cannot be used.
    """
    with joined_world(config.training.device) as world:
        if world.is_first:
            create_run(folder, config, **{"parts": parts.origins(), **(record or {})})
        world.wait()
        return _go_on(open_run(folder), parts, world, watcher or Nobody())


def resume_run(
    folder: Path, parts: Parts, *, watcher: Watcher | None = None, steps: int = 0
) -> Run:
    """Go on with a run from its newest whole checkpoint, or from its beginning if it has none.

    Args:
        folder: of the run.
        parts: as when it began, for the same numbers.
        watcher: sees it happen.
        steps: a new length of the run; 0 keeps it.
    Raises:
        TrainingError: no run, a damaged or foreign checkpoint, or as `start_run`.
    """
    run = open_run(folder)
    if "alignment" in run.record():
        raise TrainingError(f"{folder}: an alignment run; `alignment.runs` goes on with it")
    with joined_world(run.config.training.device) as world:
        if steps and world.is_first:
            lengthen_run(run, steps)
        world.wait()
        return _go_on(open_run(folder), parts, world, watcher or Nobody())


def _go_on(run: Run, parts: Parts, world: World, watcher: Watcher) -> Run:
    config, watcher = run.config, watcher if world.is_first else Nobody()
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    with locked(run, world):
        corpus, manifest = _corpus(run, world, watcher)
        with open_journal(run, world, watcher, data_identity(manifest)) as journal:
            model = Transformer(
                resized(config.model, len(corpus.byte_lengths)), parts, seed=config.seed
            )
            # For parts that draw from a global generator; the stack's own never do.
            seed_random(config.seed)
            task = NextToken(corpus, config, world)
            training = assemble(config, model.to(world.device), task, world, journal)
            carry_on(training, journal)
            if world.is_first:
                _finish(run, training, corpus, journal)
    return run


@contextmanager
def locked(run: Run, world: World) -> Iterator[None]:
    """The first rank holds the folder for all.

    Raises:
        TrainingError: as `lock_run`.
    """
    if not world.is_first:
        yield
        return
    with lock_run(run.folder):
        yield


def carry_on(
    training: Training,
    journal: RunJournal,
    begin: Callable[[Training, RunJournal], None] | None = None,
) -> None:
    """Train to the end, or until a stop is asked, from the newest checkpoint where there is one.

    Args:
        training: at step 0.
        journal: of the run.
        begin: called before the first step of a run that has no checkpoint.
    Raises:
        CheckpointError: as `RunJournal.restore`.
        TrainingError: a loss that is not finite, no memory, or a disk that refuses.
    """
    config = journal.run.config
    if journal.restore(training):
        complete = training.step >= config.training.steps
        journal.watcher.said(
            f"The run has all its {training.step} steps; --steps makes it longer."
            if complete
            else f"Going on after step {training.step}."
        )
    elif begin is not None:
        begin(training, journal)
    if config.training.tensorboard:
        journal.show_on_tensorboard(training.step)
    with explained_memory(training.model, config.training, config.sequence_length):
        train(training)


def _corpus(run: Run, world: World, watcher: Watcher) -> tuple[Corpus, Manifest]:
    """One rank prepares, all open; what a compressor makes of the text is measured once."""
    place = run.folder / SHARDS
    if world.is_first:
        prepare_corpus(run.config, place, run.tokenizer, watcher.stage)
    world.wait()
    corpus, manifest = open_corpus(run.config, place, run.tokenizer)
    if world.is_first:
        known = run.record()
        if "gzip_bits_per_byte" not in known and corpus.tokenizer is not None:
            figure = gzip_bits_per_byte(corpus.validation, corpus.tokenizer)
            run.update_record(gzip_bits_per_byte=figure, data=data_identity(manifest))
        asked, vocabulary = run.config.model.vocab_size, len(corpus.byte_lengths)
        if asked != vocabulary:
            watcher.said(f"The tokenizer has {vocabulary} tokens, not {asked}; so has the model.")
    return corpus, manifest


def _finish(run: Run, training: Training, corpus: Corpus, journal: RunJournal) -> None:
    """The weights as Hugging Face reads them, where its Llama has all that the model has."""
    finished = training.step == training.settings.steps
    if finished and not training.spread.sharded and corpus.tokenizer is not None:
        with training.averaged():
            export_model(run, training.model, corpus.tokenizer, journal.watcher)
    write_report(run.folder)


def export_model(
    run: Run,
    model: Transformer,
    tokenizer: Tokenizer,
    watcher: Watcher,
    *,
    end: int | None = None,
) -> None:
    """The run's model folder, whole or not at all: a kill leaves nothing that looks like a model.

    Args:
        end: the id at which a text ends; None is the end-of-text token.
    """
    partial = run.folder / ".model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    begin = tokenizer.special_tokens.get(END_OF_TEXT)
    ends = begin if end is None else end
    try:
        save_llama(model, partial, {"bos_token_id": begin, "eos_token_id": ends})
    except ExchangeError as error:
        watcher.said(f"Not written for Hugging Face: {error}.")
        return
    write_hugging_face(tokenizer, partial / "tokenizer.json")
    shutil.rmtree(run.model, ignore_errors=True)
    os.rename(partial, run.model)
