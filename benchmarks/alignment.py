"""What the alignment methods come to, and what a step of them costs beside TRL.

accuracy: one pretrained nano checkpoint, and from it for each seed a fine-tuned model, and from
that one each of DPO, PPO and GRPO, all as the methods' presets have it but for one setting: the
rate of the fine-tuning stays constant (`START`), as it does where training is to go on. A start
whose rate has decayed knows more and gains less (docs/alignment.md). The accuracy is that of the
last line of each run: greedy answers to the held-out tasks, over all three splits (other numbers,
other phrasings, both). A gain is in points over the fine-tuned model that the method began with,
on the same questions. The KL is that to the fine-tuned model, nats per answer. `formed` is the
share that has the form of an answer: where it rises and the accuracy on new phrasings does not, the
policy has learnt to please the program. Minutes are those of the fine-tuning and of the methods,
all seeds, evaluations included, without the pretraining; beside them stand the minutes of the
processor, which other work on the machine makes less worse.

steps: see `benchmarks.alignment_steps`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.alignment_steps import (
    STEP_COLUMNS,
    add_settings,
    measure_all,
    setting_of,
    step_results,
    step_rows,
)
from benchmarks.harness import report
from firsthand.llm.alignment.runs import start_alignment
from firsthand.llm.alignment.settings import read_settings, split_overrides
from firsthand.llm.model.settings import with_overrides
from firsthand.llm.parts import FAST
from firsthand.llm.training.metrics import read_metrics
from firsthand.llm.training.presets import run_config
from firsthand.llm.training.pretraining import start_run
from firsthand.llm.training.runs import Run

PARTS = ("accuracy", "steps")
SFT, FROM_SFT = "sft", ("dpo", "ppo", "grpo")
START = ("schedule.kind=constant",)
FIGURES = ("accuracy", "accuracy_numbers", "accuracy_phrasings", "accuracy_both", "formed", "kl")
COLUMNS = ("method", "accuracy", "gain", "numbers", "phrasings", "both", "formed", "KL")
Figures = dict[str, float]


# ------------------------------------------------------------------ accuracy


def pretrained(folder: Path) -> Path:
    """The nano preset, trained now."""
    return start_run(folder, run_config("nano"), FAST).folder


def aligned(folder: Path, base: Path, method: str, overrides: Sequence[str]) -> Figures:
    """The last figures of a run of the method, its "seconds" and those of the processor."""
    of_alignment, of_config = split_overrides(overrides)
    settings = read_settings(with_overrides({}, of_alignment))
    start, busy = time.perf_counter(), time.process_time()
    run = start_alignment(folder, base, method, settings, of_config, FAST)
    seconds, processor = time.perf_counter() - start, time.process_time() - busy
    return {**last_figures(run), "seconds": seconds, "processor_seconds": processor}


def last_figures(run: Run) -> Figures:
    """Of the run's last validation.

    Raises:
        SystemExit: the run was stopped before its end.
    """
    lines = [line for line in read_metrics(run.metrics) if line["kind"] == "validation"]
    if not lines or lines[-1]["step"] != run.config.training.steps:
        raise SystemExit(f"{run.folder}: stopped before its end")
    return {name: float(lines[-1][name]) for name in FIGURES if name in lines[-1]}


def all_runs(
    folder: Path, base: Path, seeds: int, overrides: Sequence[str]
) -> dict[str, list[Figures]]:
    """By method, the figures of each seed; those behind the fine-tuning have their "gain"."""
    found: dict[str, list[Figures]] = {method: [] for method in (SFT, *FROM_SFT)}
    for seed in range(seeds):
        # The methods take over the seed of their base, and with it the held-out questions.
        start = folder / f"{SFT}-{seed}"
        before = aligned(start, base, SFT, [*START, *overrides, f"seed={seed}"])
        found[SFT].append(before)
        _say(SFT, seed, before)
        for method in FROM_SFT:
            after = aligned(folder / f"{method}-{seed}", start, method, overrides)
            after["gain"] = 100 * (after["accuracy"] - before["accuracy"])
            found[method].append(after)
            _say(method, seed, after)
    return found


def _say(method: str, seed: int, figures: Figures) -> None:
    text = (
        f"{method}, seed {seed}: {figures['accuracy']:.1%}, {figures['seconds']:.0f} s, of the "
        f"processor {figures['processor_seconds']:.0f} s"
    )
    Console(stderr=True).print(text, highlight=False)


def accuracy_results(found: dict[str, list[Figures]]) -> dict[str, Any]:
    """Means over the seeds, and each seed's accuracy and gain."""
    results: dict[str, Any] = {}
    for method, runs in found.items():
        for name in FIGURES[:-1]:
            results[f"{method}_{name}"] = _mean(runs, name)
        results[f"{method}_accuracy_seeds"] = [run["accuracy"] for run in runs]
        results[f"{method}_minutes"] = sum(run["seconds"] for run in runs) / 60
        if method != SFT:
            results[f"{method}_gain"] = _mean(runs, "gain")
            results[f"{method}_gain_seeds"] = [run["gain"] for run in runs]
    results["kl"] = {method: _mean(found[method], "kl") for method in FROM_SFT}
    all_found = [run for runs in found.values() for run in runs]
    results["minutes"] = sum(run["seconds"] for run in all_found) / 60
    results["processor_minutes"] = sum(run["processor_seconds"] for run in all_found) / 60
    return results


def accuracy_rows(found: dict[str, list[Figures]]) -> list[list[str]]:
    """Means over the seeds; of accuracy, gain and KL the least and the most in brackets."""
    return [
        [
            method.upper(),
            _shown(runs, "accuracy", "{:.1%}"),
            _shown(runs, "gain", "{:+.1f}"),
            *(f"{_mean(runs, name):.1%}" for name in FIGURES[1:-1]),
            _shown(runs, "kl", "{:.2f}"),
        ]
        for method, runs in found.items()
    ]


def _mean(runs: list[Figures], name: str) -> float:
    return statistics.fmean(run[name] for run in runs)


def _shown(runs: list[Figures], name: str, form: str) -> str:
    values = [run[name] for run in runs if name in run]
    if not values:
        return "-"
    mean, low, high = (form.format(f(values)) for f in (statistics.fmean, min, max))
    return f"{mean} ({low}, {high})"


def measured_accuracy(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Print the table; the results."""
    torch.set_num_threads(given.threads)
    results: dict[str, Any] = {}
    base = given.base
    if base is None:
        start = time.perf_counter()
        base = pretrained(folder / "nano")
        results["pretraining_minutes"] = (time.perf_counter() - start) / 60
    found = all_runs(folder, base, given.seeds, given.set)
    results |= accuracy_results(found)
    table = Table(*COLUMNS, box=None, pad_edge=False)
    for row in accuracy_rows(found):
        table.add_row(*row)
    console = Console()
    console.print(table)
    text = (
        f"seeds: {given.seeds}, mean (least, most); {results['minutes']:.1f} minutes in all, "
        f"{results['processor_minutes']:.1f} of the processor"
    )
    console.print(text, markup=False, highlight=False)
    return results


# ------------------------------------------------------------------ both


def main() -> None:
    """Measure the parts that are asked for, both by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS, help="one of the two alone")
    parser.add_argument("--base", type=Path, help="a pretrained run; else nano is trained")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--set", action="append", default=[], help="a setting of all alignment runs; repeatable"
    )
    parser.add_argument("--keep", type=Path, help="a new folder for the runs, which stay there")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side of a step")
    parser.add_argument("--no-store", action="store_true")
    add_settings(parser)
    given = parser.parse_args()
    if min(given.seeds, given.rounds) < 1:
        parser.error("seeds and rounds are at least 1")
    setting, parts = setting_of(given), [given.part] if given.part else list(PARTS)
    results: dict[str, Any] = {}
    columns: Sequence[str] = ()
    rows: list[list[str]] = []
    note = ""
    with tempfile.TemporaryDirectory() as temporary:
        if "steps" in parts:
            place = Path(temporary, "steps")
            place.mkdir()
            found = measure_all(place, setting, given.rounds)
            results |= step_results(found)
            columns, rows = STEP_COLUMNS, step_rows(found)
            answers = setting.prompts * setting.group
            weights = (
                f"weights of {Path(setting.start).name}" if setting.start else "random weights"
            )
            note = (
                f"{setting.shape}, {setting.pairs} pairs; {answers} answers of at most "
                f"{setting.new_tokens} tokens; {setting.threads} threads; {weights}; "
                "median (least to most)"
            )
        if "accuracy" in parts:
            results |= measured_accuracy(given, given.keep or Path(temporary, "runs"))
    # A part alone does not take the place of the whole.
    start = [Path(setting.start).name] if setting.start else []
    name = "-".join(["alignment", *([given.part] if given.part else []), *start])
    report(name, columns, rows, results, note=note, store=not given.no_store)


if __name__ == "__main__":
    main()
