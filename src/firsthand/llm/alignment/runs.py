"""An alignment run: a folder like every other, with a base model and a method.

    config.toml        the base's model, with this run's optimizer, schedule and training
    run.json           "alignment": the method, the base, the settings
    base.safetensors   the base's weights, so that the run needs nothing else to go on
    tokenizer.json, checkpoints, metrics.jsonl, samples.jsonl, report.html, model

`training.trained.load_trained` reads it as it reads any run: adapters are merged there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.alignment.lora import add_lora
from firsthand.llm.alignment.methods import Setup, find_method, method_tables
from firsthand.llm.alignment.reference import BASE
from firsthand.llm.alignment.settings import AlignmentSettings, read_settings, settings_record
from firsthand.llm.data.problems import DataError
from firsthand.llm.model.config import resized
from firsthand.llm.model.parts import Parts
from firsthand.llm.model.settings import Record, SettingsError, to_record, with_overrides
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.tokenizer import Tokenizer, TokenizerError
from firsthand.llm.tokenizer.chat import END, ChatTemplate
from firsthand.llm.training.assembly import assemble
from firsthand.llm.training.config import RunConfig
from firsthand.llm.training.distributed import World, joined_world
from firsthand.llm.training.errors import TrainingError
from firsthand.llm.training.journal import Nobody, RunJournal, Watcher, open_journal
from firsthand.llm.training.loop import Training
from firsthand.llm.training.presets import config_from
from firsthand.llm.training.pretraining import SHARDS, carry_on, export_model, locked
from firsthand.llm.training.random_state import seed_random
from firsthand.llm.training.report.page import write_report
from firsthand.llm.training.runs import Run, create_run, lengthen_run, open_run
from firsthand.llm.training.state import load_state
from firsthand.llm.training.trained import Trained, load_trained


def start_alignment(
    folder: Path,
    base: Path,
    method: str,
    settings: AlignmentSettings,
    overrides: Iterable[str],
    parts: Parts,
    *,
    watcher: Watcher | None = None,
    record: Mapping[str, Any] | None = None,
) -> Run:
    """Make a run that goes on from a base model, and train it to its end or until it is stopped.

    Args:
        folder: missing or empty.
        base: a run, which may be an aligned one itself, or a folder in Hugging Face's format.
        method: "sft", "reward", "dpo", "ppo" or "grpo".
        settings: what is learnt from, and the method's own figures.
        overrides: of the run's config, such as "training.steps=100".
        parts: the code of the model and of the training.
        watcher: sees it happen.
        record: more for run.json.
    Raises:
        AlignmentError: a base without chat tokens, records or settings that do not fit it. A run
            that could not begin leaves no folder.
        SettingsError: an unknown method, key or value.
        TrainingError: no such base, the folder is in use, memory or disk is full, a loss that is
            not finite.
        DataError, TokenizerError: a file that cannot be read.
    """
    find_method(method)
    trained = load_base(base, parts)
    # The methods' rows are as long as generated tasks need; nobody knows how long records are.
    longer = ("training.sequence_length=0",) if settings.files else ()
    config = alignment_config(trained, method, (*longer, *overrides))
    settings = replace(settings, files=tuple(str(Path(f).resolve()) for f in settings.files))
    with joined_world(config.training.device) as world:
        if world.is_first:
            about = {
                "method": method,
                "base": str(base.resolve()),
                "base_step": trained.step,
                "settings": settings_record(settings),
            }
            more = {"parts": parts.origins(), **(record or {}), "alignment": about}
            run = create_run(folder, config, **more)
            _keep_base(run, trained)
        world.wait()
        run = open_run(folder)
        try:
            return _go_on(run, parts, world, watcher or Nobody())
        except (ValueError, DataError, TokenizerError):
            if world.is_first:
                _remove_unbegun(run)
            raise


def resume_alignment(
    folder: Path, parts: Parts, *, watcher: Watcher | None = None, steps: int = 0
) -> Run:
    """Go on with a run from its newest whole checkpoint, or from its base if it has none.

    Args:
        folder: of the run.
        parts: as when it began, for the same numbers.
        watcher: sees it happen.
        steps: a new length of the run; 0 keeps it.
    Raises:
        AlignmentError: not an alignment run, or its base is gone and was not copied yet.
        TrainingError: no run, a damaged or foreign checkpoint, or as `start_alignment`.
    """
    run = open_run(folder)
    alignment_record(run)
    with joined_world(run.config.training.device) as world:
        if steps and world.is_first:
            lengthen_run(run, steps)
        world.wait()
        return _go_on(open_run(folder), parts, world, watcher or Nobody())


def load_base(path: Path, parts: Parts) -> Trained:
    """A model to go on from, with as many tokens as its tokenizer, which has the chat tokens.

    Raises:
        AlignmentError: the tokenizer lacks chat tokens, or has more tokens than the model.
        TrainingError, ExchangeError, TokenizerError: as `load_trained`.
    """
    trained = load_trained(path, parts)
    try:
        ChatTemplate(trained.tokenizer)
    except TokenizerError as error:
        raise AlignmentError(f"{path}: {error}") from None
    model, vocabulary = trained.model, trained.tokenizer.vocabulary_size
    if model.config.vocab_size < vocabulary:
        raise AlignmentError(
            f"{path}: the tokenizer has {vocabulary} tokens and the model "
            f"{model.config.vocab_size}: they do not belong together"
        )
    if model.config.vocab_size == vocabulary:
        return trained
    # Rows beyond the tokenizer's are padding to a round number.
    smaller = Transformer(resized(model.config, vocabulary), parts)
    weights = dict(model.state_dict())
    cut = {name: weights[name][: len(t)] for name, t in smaller.state_dict().items()}
    smaller.load_state_dict(cut)
    return replace(trained, model=smaller.eval())


def alignment_config(trained: Trained, method: str, overrides: Iterable[str]) -> RunConfig:
    """The config of a run: the base's model, the method's tables, the overrides.

    Its data table names the text that the base was trained on, for measures of what is forgotten.

    Raises:
        SettingsError: an unknown key or a bad value; a shape that is not the base's.
    """
    base = trained.run
    tables, model = method_tables(method), trained.model.config
    training = dict(tables.get("training", {}))
    training["sequence_length"] = min(training.get("sequence_length", 0), model.context)
    record: Record = {
        "name": method,
        "model": to_record(model),
        **tables,
        "training": training,
    }
    if base is not None:
        data = base.config.data
        shards = Path(data.folder or base.folder / SHARDS).resolve()
        record |= {"data": to_record(replace(data, folder=str(shards))), "seed": base.config.seed}
    given = list(overrides)
    for override in given:
        if override.partition("=")[0].strip().startswith(("model.", "data.")):
            raise SettingsError(f"{override!r}: the model and its text are those of the base")
    config = config_from(with_overrides(record, given))
    if config.training.parallel == "fsdp":
        raise SettingsError('training.parallel is "ddp" for alignment; "fsdp" only pretrains')
    return config


def alignment_record(run: Run) -> Record:
    """The method, the base and the settings that run.json has.

    Raises:
        AlignmentError: the run is not an alignment run.
    """
    record: Record | None = run.record().get("alignment")
    if record is None:
        raise AlignmentError(
            f"{run.folder}: not an alignment run; go on with it by `firsthand train --resume`"
        )
    return record


def _go_on(run: Run, parts: Parts, world: World, watcher: Watcher) -> Run:
    config, watcher = run.config, watcher if world.is_first else Nobody()
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    record = alignment_record(run)
    method, settings = find_method(record["method"]), read_settings(record["settings"])
    with locked(run, world):
        model, tokenizer = _base(run, record, parts, world)
        identity = {"tokenizer": tokenizer.hash, "splits": {}}
        seed_random(config.seed)
        if settings.lora is not None:
            add_lora(model, settings.lora, config.seed)
        model = model.to(world.device)
        with open_journal(run, world, watcher, identity) as journal:
            setup = Setup(run=run, model=model, tokenizer=tokenizer, settings=settings, world=world)
            training = assemble(config, model, method(setup), world, journal)
            carry_on(training, journal, _before)
            if world.is_first:
                _finish(run, parts, training, tokenizer, record["method"], watcher)
    return run


def _before(training: Training, journal: RunJournal) -> None:
    """What the base makes of the task: the first point of every curve."""
    task, settings = training.task, training.settings
    measures = task.validate(training.model, settings.evaluate_batches)
    journal.line({"kind": "validation", "step": 0, **measures})
    journal.samples(0, task.samples(training.model, 0))


def _finish(
    run: Run,
    parts: Parts,
    training: Training,
    tokenizer: Tokenizer,
    method: str,
    watcher: Watcher,
) -> None:
    """The weights for others, adapters merged; a reward model writes nothing, so it has none."""
    if training.step == training.settings.steps and method != "reward":
        end = tokenizer.special_tokens[END]
        export_model(run, load_trained(run.folder, parts).model, tokenizer, watcher, end=end)
    write_report(run.folder)


def _keep_base(run: Run, trained: Trained) -> None:
    """The tokenizer and the weights; both are read again, so that a resume sees the same bits."""
    trained.tokenizer.save(run.tokenizer)
    path = run.folder / BASE
    partial = path.with_suffix(".partial")
    weights = {n: t.detach().float().contiguous() for n, t in trained.model.state_dict().items()}
    try:
        save_file(weights, partial, metadata={"format": "pt"})
        digest = _digest(partial)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path}: cannot be written: {error}") from error
    run.update_record(alignment={**alignment_record(run), "base_sha256": digest})


def _remove_unbegun(run: Run) -> None:
    """Records that cannot be learnt from leave no folder in the way of the next try."""
    begun = run.metrics.exists() and run.metrics.stat().st_size
    if not begun and not any(run.checkpoints.iterdir()):
        shutil.rmtree(run.folder, ignore_errors=True)


def _base(run: Run, record: Record, parts: Parts, world: World) -> tuple[Transformer, Tokenizer]:
    """The run's copy of its base, made again where the creation was cut off before it."""
    path = run.folder / BASE
    if "base_sha256" not in record:
        if world.is_first:
            _keep_base(run, load_base(Path(record["base"]), parts))
        world.wait()
        record = alignment_record(run)
    try:
        if _digest(path) != record["base_sha256"]:
            raise AlignmentError(f"{path}: damaged, it differs from its checksum in run.json")
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise AlignmentError(f"{path}: cannot be read: {error}") from error
    tokenizer = Tokenizer.load(run.tokenizer)
    model = Transformer(
        resized(run.config.model, tokenizer.vocabulary_size), parts, seed=run.config.seed
    )
    load_state(dict(model.state_dict()), weights, f"{path}: it is")
    return model, tokenizer


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
