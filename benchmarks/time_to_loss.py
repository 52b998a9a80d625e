"""nanoGPT's time to its own final validation loss, and ours to that loss, on the same cores.

Both train on the characters of Shakespeare with 4 layers of width 128, 4 heads and 64 tokens of
context, 0.80M parameters. nanoGPT runs unchanged by its README's recipe for a CPU, ours with its
own loop by the preset `speedrun`. Training time is that of the loop: no imports, no model to
build, no validation, no checkpoints. Both losses are of the whole validation split, cut into the
same windows by the same function. Each training has a process of its own.

    python -m benchmarks.time_to_loss --nanogpt DIR           DIR is a checkout of nanoGPT
    python -m benchmarks.time_to_loss --nanogpt DIR --quick   a few steps: does it work at all?
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Spread, in_own_process, report
from firsthand.llm.data.loading import TokenStream
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.training.assembly import assemble
from firsthand.llm.training.distributed import World
from firsthand.llm.training.journal import NoJournal
from firsthand.llm.training.loop import train
from firsthand.llm.training.next_token import Corpus, NextToken
from firsthand.llm.training.presets import run_config
from firsthand.resources import usable_cores

TEXT = Path("../shared/data/tinyshakespeare.txt")
CONTEXT = 64
STEPS = 2000
QUICK_STEPS = 20
# The README's recipe, section "I only have a macbook".
RECIPE = (
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 "
    "--log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 "
    "--max_iters={steps} --lr_decay_iters={steps} --dropout=0.0"
)


def splits(text: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Character ids of nine tenths for training and of the rest, and how many characters exist.

    The same numbers as nanoGPT's `data/shakespeare_char/prepare.py` writes.
    """
    characters = text.read_text(encoding="utf-8")
    alphabet = sorted(set(characters))
    numbers = {character: number for number, character in enumerate(alphabet)}
    ids = np.array([numbers[character] for character in characters], np.uint16)
    cut = int(len(ids) * 0.9)
    return ids[:cut], ids[cut:], len(alphabet)


def validation_loss(total: Callable[[Tensor, Tensor], float], ids: np.ndarray) -> float:
    """Nats per token of all whole windows of the split.

    Args:
        total: inputs and targets (rows, CONTEXT) -> the sum of the losses.
        ids: of the split.
    """
    stream = torch.from_numpy(ids.astype(np.int64))
    windows = (len(stream) - 1) // CONTEXT
    inputs = stream[: windows * CONTEXT].view(windows, CONTEXT)
    targets = stream[1 : windows * CONTEXT + 1].view(windows, CONTEXT)
    with torch.no_grad():
        pairs = zip(inputs.split(64), targets.split(64), strict=True)
        return sum(total(x, y) for x, y in pairs) / (windows * CONTEXT)


class _Watch:
    """Wall and processor seconds, less what is spent between `stop` and `go`."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        self._wall -= time.perf_counter()
        self._cpu -= time.process_time()

    def go(self) -> None:
        self._wall += time.perf_counter()
        self._cpu += time.process_time()

    def read(self) -> dict[str, float]:
        return {
            "seconds": time.perf_counter() - self._wall,
            "cpu_seconds": time.process_time() - self._cpu,
        }


def run_nanogpt(folder: Path, text: Path, steps: int) -> dict[str, Any]:
    """Its training script as it is, in this process; `folder` is a copy that may be written to.

    Its `estimate_loss` begins with `model.eval()` and ends with `model.train()`, and it saves
    checkpoints by `torch.save`: the watch stands still in between.
    """
    data = folder / "data" / "shakespeare_char"
    shutil.copyfile(text, data / "input.txt")
    if importlib.util.find_spec("requests") is None:
        # The script imports it for a download that is not needed.
        (data / "requests.py").touch()
    subprocess.run([sys.executable, "prepare.py"], cwd=data, check=True, stdout=sys.stderr)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    model_class: Any = importlib.import_module("model").GPT
    found: dict[str, Any] = {}
    configure, set_mode, save = model_class.configure_optimizers, model_class.train, torch.save

    def begin(*arguments: Any) -> Any:
        optimizer = configure(*arguments)
        found["watch"] = _Watch()
        return optimizer

    def pause(model: Any, mode: bool = True) -> Any:
        if "watch" in found:
            found["watch"].go() if mode else found["watch"].stop()
        return set_mode(model, mode)

    def save_unseen(*arguments: Any) -> None:
        found["watch"].stop()
        save(*arguments)
        found["watch"].go()

    model_class.configure_optimizers, model_class.train = begin, pause
    torch.save = save_unseen
    sys.argv = ["train.py", *RECIPE.format(steps=steps).split(), f"--out_dir={folder / 'out'}"]
    model = runpy.run_path("train.py")["model"]
    spent = found.pop("watch").read()
    model_class.train = set_mode
    model.eval()
    ids = np.fromfile(data / "val.bin", np.uint16)
    loss = validation_loss(lambda x, y: float(model(x, y)[1]) * x.numel(), ids)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tokens = (steps + 1) * 12 * CONTEXT
    return {**spent, "loss": loss, "steps": steps + 1, "tokens": tokens, "parameters": parameters}


def run_ours(text: Path, seed: int, overrides: list[str], threads: int) -> dict[str, Any]:
    """The preset `speedrun`, in this process."""
    training_ids, validation_ids, vocabulary = splits(text)
    config = replace(run_config("speedrun", overrides), seed=seed)
    if config.model.vocab_size != vocabulary:
        raise SystemExit(f"{text}: {vocabulary} characters, not {config.model.vocab_size}")
    corpus = Corpus(
        train=TokenStream([training_ids], 0),
        validation=TokenStream([validation_ids], 0),
        byte_lengths=np.ones(vocabulary, np.int64),
    )
    world = World(rank=0, ranks=1, device=torch.device("cpu"))
    torch.set_num_threads(threads)
    model = Transformer(config.model, FAST, seed=seed)
    task = NextToken(corpus, config, world)
    training = assemble(config, model, task, world, NoJournal())
    set_mode = model.train
    watch = _Watch()
    began_validation: list[bool] = []

    def pause(mode: bool = True) -> Any:
        # The loop validates once, at the end, and `evaluate` begins by setting the mode.
        if not mode and not began_validation:
            began_validation.append(True)
            watch.stop()
        return set_mode(mode)

    model.train = pause  # type: ignore[method-assign]
    train(training)
    watch.go()
    spent = watch.read()
    loss = validation_loss(lambda x, y: float(model.loss(x, y).total), validation_ids)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        **spent,
        "loss": loss,
        "steps": training.step,
        "tokens": training.tokens,
        "parameters": parameters,
    }


def measured_apart(side: str, arguments: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """One side's record, from a new Python with as many threads as the other's."""
    options = [f"--{name}={value}" for name, value in more.items()]
    options += [f"--set={item}" for item in arguments.set]
    options += [f"--text={arguments.text.resolve()}", f"--threads={arguments.threads}"]
    record = in_own_process("time_to_loss", f"--side={side}", *options)
    if record["steps"] == 1:
        return record
    name = f"{side}, seed {more['seed']}" if side == "ours" else side
    print(
        f"{name}: {record['seconds']:.1f} s ({record['cpu_seconds']:.1f} s of processor time), "
        f"{record['steps']} steps, loss {record['loss']:.4f}",
        flush=True,
    )
    return record


def run_side(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `measured_apart` starts."""
    torch.set_num_threads(arguments.threads)
    if arguments.side == "ours":
        return run_ours(arguments.text, arguments.seed, arguments.set, arguments.threads)
    with tempfile.TemporaryDirectory() as copy:
        folder = Path(copy) / "nanogpt"
        ignored = shutil.ignore_patterns(".git", "assets", "*.ipynb", "out*")
        shutil.copytree(arguments.nanogpt, folder, ignore=ignored)
        return run_nanogpt(folder, arguments.text, arguments.steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT; it is not written to")
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--seeds", type=int, default=3, help="of ours; nanoGPT sets its own")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--set", action="append", default=[], help="override the preset")
    parser.add_argument("--quick", action="store_true", help="few steps, nothing stored")
    parser.add_argument("--side", choices=("ours", "nanogpt"), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=STEPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        record = run_side(arguments)
        print()
        print(json.dumps(record))
        return
    if arguments.nanogpt is None or not (arguments.nanogpt / "train.py").is_file():
        raise SystemExit("--nanogpt names a checkout of nanoGPT: there is no train.py in it")
    if arguments.quick:
        arguments.set.append(f"training.steps={QUICK_STEPS}")
    steps = QUICK_STEPS if arguments.quick else STEPS

    # Compiled kernels stay on the disk from the first process that runs them.
    quiet = argparse.Namespace(**{**vars(arguments), "set": ["training.steps=1"]})
    measured_apart("ours", quiet, seed=0)

    # nanoGPT in the middle: what else the machine does then falls on both sides.
    half = (arguments.seeds + 1) // 2
    ours = [measured_apart("ours", arguments, seed=seed) for seed in range(half)]
    peer = measured_apart("nanogpt", arguments, nanogpt=arguments.nanogpt.resolve(), steps=steps)
    ours += [measured_apart("ours", arguments, seed=n) for n in range(half, arguments.seeds)]

    losses = Spread(tuple(record["loss"] for record in ours))
    seconds = Spread(tuple(record["seconds"] for record in ours))
    cpu = Spread(tuple(record["cpu_seconds"] for record in ours))
    mean_loss, mean_seconds = _mean(losses), _mean(seconds)
    reached = mean_loss <= peer["loss"]
    results = {
        "ratio": round(peer["seconds"] / mean_seconds, 2),
        "reached": reached,
        "seeds_that_reached": sum(loss <= peer["loss"] for loss in losses.values),
        "target_loss": round(peer["loss"], 4),
        "ours_loss": round(mean_loss, 4),
        "ours_losses": [round(loss, 4) for loss in losses.values],
        "ours_seconds": round(mean_seconds, 2),
        "ours_seconds_each": [round(second, 2) for second in seconds.values],
        "nanogpt_seconds": round(peer["seconds"], 2),
        "cpu_ratio": round(peer["cpu_seconds"] / _mean(cpu), 2),
        "ours_steps": ours[0]["steps"],
        "ours_tokens": ours[0]["tokens"],
        "nanogpt_steps": peer["steps"],
        "nanogpt_tokens": peer["tokens"],
        "ours_parameters": ours[0]["parameters"],
        "nanogpt_parameters": peer["parameters"],
        "threads": arguments.threads,
    }
    rows = [
        _row("nanoGPT", peer, Spread((peer["seconds"],)), Spread((peer["loss"],))),
        _row(f"ours, {len(ours)} seeds", ours[0], seconds, losses),
        ("  ratio", f"{results['ratio']:.2f} x", "", "", "", "", ""),
    ]
    report(
        "time_to_loss",
        ("", "seconds", "spread", "loss", "spread", "steps", "tokens"),
        rows,
        results,
        note="" if reached else "Our loss is above nanoGPT's: the ratio does not count.",
        store=not arguments.quick,
    )


def _mean(spread: Spread) -> float:
    return sum(spread.values) / len(spread.values)


def _row(name: str, record: dict[str, Any], seconds: Spread, losses: Spread) -> tuple[str, ...]:
    return (
        name,
        f"{_mean(seconds):.1f}",
        f"{seconds.low:.1f} - {seconds.high:.1f}",
        f"{_mean(losses):.4f}",
        f"{losses.low:.4f} - {losses.high:.4f}",
        str(record["steps"]),
        f"{record['tokens']:,}",
    )


if __name__ == "__main__":
    main()
