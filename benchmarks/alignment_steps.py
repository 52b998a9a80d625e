"""A DPO step and a GRPO step beside TRL's: the same weights, data and batch, float32, on the CPU.

Each side runs in a process of its own and has the same weights, random ones of one shape or those
of a run (`--start`), the same tokenizer, and the same preference pairs and questions of the
generated tasks. Ours runs the training loop with the methods' own tasks; theirs is `DPOTrainer` or
`GRPOTrainer` on transformers' Llama.

DPO: both compute the reference's log-probabilities of all pairs before the first step
(`precompute_ref_log_probs`), so that no step pays for them; the peak includes it. Both take the
pairs in the same order and pad to the longest.

GRPO: a step is one round and one update of all its answers: rollouts, rewards, advantages, the
reference's forward pass, the policy's, its gradients, AdamW. Both sample with a cache, at
temperature 1, groups of one size. With random weights theirs writes exactly `max_new_tokens`
(`min_new_tokens` is the same); ours has no least length and ends an answer where the end token is
drawn, which random weights do about once in as many tokens as the vocabulary has. With those of a
run both end an answer where the model does. The tokens of each side's answers are reported: they
are what a step costs, and random weights write the longest and never the same twice, while a model
that has learnt to answer writes a few, often equal ones. The reward is a plain function of the
text, the same on both sides. The prompts are the same; the answers are drawn by each side's own
generator.

Theirs runs without gradient checkpointing, TRL's default, since that costs time; `recompute` turns
it on. Time is from the end of one step to the end of the next. Memory is the peak of the resident
set less what the process held before the model was made, the libraries imported: on our side those
are PyTorch and Numba, on theirs PyTorch, transformers, datasets and TRL. Numba loads the modules of
its compiler with the first compiled loop; that is done before, and the compiled loops themselves
count as ours. The ratio with Numba's modules counted as ours, too, is reported beside.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from numba.core.registry import cpu_target

from benchmarks.harness import Spread, in_own_process
from benchmarks.training import MIB, reset_peak, resident_bytes
from firsthand.llm.alignment.dpo_task import DpoTask
from firsthand.llm.alignment.grpo_task import GrpoTask
from firsthand.llm.alignment.methods import method_tables
from firsthand.llm.alignment.orders import SeededOrder
from firsthand.llm.alignment.pair_data import PairData
from firsthand.llm.alignment.preferences import Pair, encoded_pairs, task_preferences
from firsthand.llm.alignment.reference import FILE, ReferenceTable
from firsthand.llm.alignment.rewards import Question, task_questions
from firsthand.llm.alignment.rollouts import Rollouts
from firsthand.llm.alignment.runs import load_base
from firsthand.llm.alignment.settings import DpoSettings, GrpoSettings, TaskSettings
from firsthand.llm.data.tasks import generate_tasks
from firsthand.llm.model.config import ModelConfig, preset, resized
from firsthand.llm.model.hugging_face import save_llama
from firsthand.llm.model.settings import to_record
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.tokenizer import Tokenizer, train
from firsthand.llm.tokenizer.chat import CHAT_TOKENS, END, ChatTemplate
from firsthand.llm.tokenizer.hugging_face import write_hugging_face
from firsthand.llm.training.assembly import assemble
from firsthand.llm.training.config import RunConfig
from firsthand.llm.training.distributed import World
from firsthand.llm.training.loop import Training
from firsthand.llm.training.loop import train as run_loop
from firsthand.llm.training.presets import config_from

OURS, THEIRS = "firsthand", "TRL"
METHODS = ("dpo", "grpo")
MISSING = "needs TRL: pip install trl accelerate (it brings transformers and datasets)"
TOKENIZER, SEED = "firsthand-tokenizer.json", 0
# Text that the tokenizer is learnt from beside the tasks, so that it has as many tokens as asked.
SOURCES = 60


@dataclass(frozen=True)
class Setting:
    """What both sides do.

    Attributes:
        shape: a preset of the model.
        start: a run whose weights and tokenizer are used; empty: random weights of the shape.
        pairs: of a DPO step.
        prompts, group, new_tokens: of a GRPO step: questions, answers to each, their tokens.
        warmup: steps that do not count, in each process.
        steps: that are measured after them.
        threads: of PyTorch.
        recompute: theirs with gradient checkpointing.
    """

    shape: str = "nano"
    start: str = ""
    pairs: int = 32
    prompts: int = 8
    group: int = 8
    new_tokens: int = 32
    warmup: int = 2
    steps: int = 5
    threads: int = 2
    recompute: int = 0

    @property
    def updates(self) -> int:
        """Steps of a process."""
        return self.warmup + self.steps


@dataclass(frozen=True)
class Measured:
    """One process of one side.

    Attributes:
        seconds: of each measured step.
        peak_bytes: resident, less before the model.
        losses: of all steps, as each side reports them.
        data: the token ids of the prompts and pairs, summed: equal where both read the same.
        answer_tokens: of a rollout, on average; 0 for DPO.
        numba_bytes: resident, of Numba's compiler; not in the peak.
    """

    seconds: list[float]
    peak_bytes: int
    losses: list[float]
    data: int
    answer_tokens: float = 0.0
    numba_bytes: int = 0


@dataclass
class Clock:
    """The end of each step, and the peak until then."""

    ends: list[float] = field(default_factory=list)
    peak: int = 0

    def tick(self) -> None:
        """A step is over."""
        self.ends.append(time.perf_counter())
        self.peak = resident_bytes("VmHWM")

    def seconds(self, warmup: int) -> list[float]:
        """Of each step after the warm-up, which is at least one step."""
        return [end - start for start, end in zip(self.ends, self.ends[1:], strict=False)][
            warmup - 1 :
        ]


def prepare(folder: Path, setting: Setting) -> None:
    """Write weights and tokenizer, as both sides read them."""
    if setting.start:
        tokenizer = load_base(Path(setting.start), FAST).tokenizer
    else:
        library = Path(sysconfig.get_path("stdlib"))
        texts = [p.read_text("utf-8") for p in sorted(library.glob("*.py"))[:SOURCES]]
        texts += [f"{task.prompt} {task.expected}" for task in drawn_tasks(2000)]
        tokenizer = train(texts, preset(setting.shape).vocab_size, special_tokens=CHAT_TOKENS)
    tokenizer.save(folder / TOKENIZER)
    write_hugging_face(tokenizer, folder / "tokenizer.json")
    ends = {"eos_token_id": ChatTemplate(tokenizer).end}
    save_llama(first_model(setting, tokenizer), folder, ends)


def first_model(setting: Setting, tokenizer: Tokenizer) -> Transformer:
    """The weights that both sides begin with: the run's, or those of the seed."""
    if setting.start:
        return load_base(Path(setting.start), FAST).model
    config = resized(preset(setting.shape), tokenizer.vocabulary_size)
    return Transformer(config, FAST, seed=SEED)


def drawn_tasks(count: int) -> list[Any]:
    """Of the kinds and levels that the methods learn from by default."""
    tasks = TaskSettings()
    return list(generate_tasks(count, seed=SEED, kinds=tasks.kinds, levels=tasks.levels))


def ordered_pairs(tokenizer: Tokenizer, context: int, setting: Setting) -> list[Pair]:
    """The pairs of all steps and one more, which our task holds out."""
    wanted = setting.pairs * setting.updates + 1
    records = task_preferences(drawn_tasks(wanted), SEED)
    return encoded_pairs(records, ChatTemplate(tokenizer), context)


def ordered_questions(setting: Setting) -> list[Question]:
    """The questions of all steps."""
    return task_questions(drawn_tasks(setting.prompts * setting.updates))


def reward(text: str) -> float:
    """The share of different characters: something that answers of random weights differ in."""
    return len(set(text)) / max(1, len(text))


def pair_sum(pairs: Sequence[Pair]) -> int:
    """Of the ids, to compare the sides."""
    return sum(int(sum(map(int, e.ids))) for pair in pairs for e in (pair.chosen, pair.rejected))


# ------------------------------------------------------------------ ours


class _Lines:
    """The journal of the loop: the clock ticks with each step's line."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.records = clock, list[dict[str, Any]]()

    def line(self, record: dict[str, Any]) -> None:
        if record["kind"] == "train":
            self.clock.tick()
            self.records.append(record)

    def samples(self, step: int, records: list[dict[str, Any]]) -> None:
        """Nobody asked."""

    def save(self, training: Training) -> None:
        """Theirs does not save, either."""

    def stop_asked(self) -> bool:
        return False


def our_config(method: str, model: ModelConfig, setting: Setting) -> RunConfig:
    """The method's preset at a constant rate, without evaluation on the way."""
    tables = method_tables(method)
    training = {
        **tables["training"],
        "steps": setting.updates,
        "batch_size": setting.pairs,
        "evaluate_every": 0,
        "sample_every": 0,
        "save_every": 0,
        "device": "cpu",
    }
    schedule = {"kind": "constant", "warmup": 0}
    changed = {"training": training, "schedule": schedule}
    return config_from({**tables, **changed, "model": to_record(model), "seed": SEED})


def our_side(method: str, folder: Path, setting: Setting) -> Measured:
    """The methods' tasks in the training loop."""
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    template, world = ChatTemplate(tokenizer), World(0, 1, torch.device("cpu"))
    without_numba = resident_bytes("VmRSS")
    cpu_target.target_context.refresh()
    before = resident_bytes("VmRSS")
    reset_peak()
    model = first_model(setting, tokenizer)
    config = our_config(method, model.config, setting)
    if method == "dpo":
        pairs = ordered_pairs(tokenizer, model.config.context, setting)
        path = folder / f"{os.getpid()}-{FILE}"
        table = ReferenceTable(path, "benchmark", len(pairs))
        data = PairData(pairs[:-1], pairs[-1:])
        task: Any = DpoTask(
            data, table, config, DpoSettings(likelihood=0.0), world, padding=template.end
        )
        table.fill(model, pairs, task.needed(), setting.pairs)
        known = pair_sum(pairs[:-1])
    else:
        questions = ordered_questions(setting)
        task = GrpoTask(
            model,
            tokenizer,
            questions,
            config,
            grpo_settings(setting),
            world,
            prompts=setting.prompts,
            samples=setting.group,
            scores=_scores,
        )
        known = sum(sum(prompt) for prompt in task.prompts)
    clock = Clock()
    lines = _Lines(clock)
    run_loop(assemble(config, model, task, world, lines))
    return Measured(
        clock.seconds(setting.warmup),
        clock.peak - before,
        [line["loss"] for line in lines.records],
        known,
        statistics.fmean(line.get("answer_length", 0.0) for line in lines.records),
        before - without_numba,
    )


def grpo_settings(setting: Setting) -> GrpoSettings:
    """A round is one update; the other figures are the method's own."""
    answers = setting.prompts * setting.group
    return GrpoSettings(
        prompts=setting.prompts,
        group=setting.group,
        minibatch=answers,
        max_new_tokens=setting.new_tokens,
        kl_coefficient=0.02,
    )


def _scores(rollouts: Rollouts, questions: Sequence[Question]) -> torch.Tensor:
    return torch.tensor([reward(text) for text in rollouts.texts])


# ------------------------------------------------------------------ theirs


def their_side(method: str, folder: Path, setting: Setting) -> Measured:
    """TRL's trainer.

    Raises:
        SystemExit: it is not installed.
    """
    # Nothing is fetched, and nobody is told.
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    os.environ |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    trl = _imported_trl()
    import transformers.models.llama.modeling_llama  # noqa: F401
    from datasets import Dataset
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from transformers.trainer_callback import PrinterCallback

    # Loaded when they are first named: their imports are not the model's memory.
    trainer_of = {"dpo": trl.DPOTrainer, "grpo": trl.GRPOTrainer}[method]
    config_of = {"dpo": trl.DPOConfig, "grpo": trl.GRPOConfig}[method]
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    template = ChatTemplate(tokenizer)
    theirs: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_file=str(folder / "tokenizer.json"), eos_token=END, pad_token=END
    )
    clock = Clock()
    optimizer = our_config(method, preset(setting.shape), setting).optimizer
    common: dict[str, Any] = {
        "output_dir": str(folder / "trl"),
        "max_steps": setting.updates,
        "learning_rate": optimizer.learning_rate,
        "adam_beta1": optimizer.beta1,
        "adam_beta2": optimizer.beta2,
        "adam_epsilon": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
        "max_grad_norm": optimizer.clip,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": bool(setting.recompute),
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": SEED,
    }

    class Ticks(TrainerCallback):
        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            clock.tick()

    before = resident_bytes("VmRSS")
    reset_peak()
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    context = model.config.max_position_embeddings
    lengths: list[float] = []
    trainer: Any
    if method == "dpo":
        pairs = ordered_pairs(tokenizer, context, setting)[:-1]
        order = SeededOrder(len(pairs), SEED).peek(len(pairs))
        rows = [_text_pair(pairs[number], tokenizer) for number in order]
        trainer = trainer_of(
            model,
            args=config_of(
                **common,
                per_device_train_batch_size=setting.pairs,
                precompute_ref_log_probs=True,
                precompute_ref_batch_size=setting.pairs,
                beta=DpoSettings().beta,
                max_length=context,
                train_sampling_strategy="sequential",
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=theirs,
            callbacks=[Ticks()],
        )
        known = sum(
            2 * sum(row["prompt_ids"]) + sum(row["chosen_ids"]) + sum(row["rejected_ids"])
            for row in trainer.train_dataset
        )
    else:
        ours = grpo_settings(setting)
        questions = ordered_questions(setting)
        order = SeededOrder(len(questions), SEED).peek(len(questions))
        prompts = [tokenizer.decode(questions[n].ids(template, context)) for n in order]

        def scores(completions: list[str], completion_ids: Any, **named: Any) -> list[float]:
            lengths.append(statistics.fmean(len(ids) for ids in completion_ids))
            return [reward(text) for text in completions]

        trainer = trainer_of(
            model,
            reward_funcs=scores,
            args=config_of(
                **common,
                per_device_train_batch_size=ours.minibatch,
                num_generations=ours.group,
                steps_per_generation=1,
                num_iterations=ours.epochs,
                max_completion_length=ours.max_new_tokens,
                generation_kwargs={} if setting.start else {"min_new_tokens": ours.max_new_tokens},
                temperature=ours.temperature,
                beta=ours.kl_coefficient,
                epsilon=ours.clip,
                loss_type="grpo",
                shuffle_dataset=False,
            ),
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
            processing_class=theirs,
            callbacks=[Ticks()],
        )
        known = sum(sum(theirs(prompt)["input_ids"]) for prompt in prompts)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    losses = [float(line["loss"]) for line in trainer.state.log_history if "loss" in line]
    answer_tokens = statistics.fmean(lengths) if lengths else 0.0
    return Measured(
        clock.seconds(setting.warmup), clock.peak - before, losses, known, answer_tokens
    )


def _imported_trl() -> Any:
    try:
        import_module("accelerate")
        return import_module("trl")
    except ImportError as error:
        raise SystemExit(MISSING) from error


def _text_pair(pair: Pair, tokenizer: Tokenizer) -> dict[str, str]:
    """Prompt and answers as text; their trainer adds the end token where it is missing."""
    first = list(pair.chosen.trained).index(True)
    prompt, chosen, rejected = (
        tokenizer.decode([int(i) for i in ids])
        for ids in (pair.chosen.ids[:first], pair.chosen.ids[first:], pair.rejected.ids[first:])
    )
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


# ------------------------------------------------------------------ both


def measure_all(
    folder: Path, setting: Setting, rounds: int
) -> dict[str, dict[str, list[Measured]]]:
    """By method and side, in turns.

    Raises:
        SystemExit: a side failed, TRL is missing, or the sides did not read the same data.
    """
    _imported_trl()
    prepare(folder, setting)
    # Compiled once and cached, so that no measured process pays for it.
    for method in METHODS:
        _apart(OURS, method, folder, Setting(**{**asdict(setting), "warmup": 1, "steps": 1}))
    found: dict[str, dict[str, list[Measured]]] = {m: {OURS: [], THEIRS: []} for m in METHODS}
    for number in range(rounds):
        for method in METHODS:
            for side in (OURS, THEIRS) if number % 2 == 0 else (THEIRS, OURS):
                found[method][side].append(_apart(side, method, folder, setting))
    for method, sides in found.items():
        read = {run.data for runs in sides.values() for run in runs}
        if len(read) > 1:
            raise SystemExit(f"{method}: the sides did not read the same tokens: {sorted(read)}")
    return found


def _apart(side: str, method: str, folder: Path, setting: Setting) -> Measured:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in asdict(setting).items()]
    return Measured(
        **in_own_process(
            "alignment_steps", f"--side={side}", f"--method={method}", f"--folder={folder}", *words
        )
    )


def step_results(found: dict[str, dict[str, list[Measured]]]) -> dict[str, float]:
    """Their time / ours, our memory / theirs, and what they come from."""
    results: dict[str, float] = {}
    for method, sides in found.items():
        ours, theirs = sides[OURS], sides[THEIRS]
        results[f"{method}_ratio"] = _seconds(theirs).median / _seconds(ours).median
        results[f"{method}_memory_ratio"] = _peak(ours).median / _peak(theirs).median
        for name, runs in (("ours", ours), ("trl", theirs)):
            results[f"{method}_{name}_seconds"] = _seconds(runs).median
            results[f"{method}_{name}_peak_bytes"] = _peak(runs).median * MIB
        numba = statistics.median(run.numba_bytes for run in ours)
        results[f"{method}_ours_numba_bytes"] = numba
        with_numba = _peak(ours).median + numba / MIB
        results[f"{method}_memory_ratio_with_numba"] = with_numba / _peak(theirs).median
    for name, side in (("ours", OURS), ("trl", THEIRS)):
        lengths = [run.answer_tokens for run in found["grpo"][side]]
        results[f"grpo_{name}_answer_tokens"] = statistics.fmean(lengths)
    return results


STEP_COLUMNS = ("step", "side", "seconds", "peak MiB over start", "answer tokens", "loss")


def step_rows(found: dict[str, dict[str, list[Measured]]]) -> list[list[str]]:
    """Medians, and the least and the most in brackets."""
    rows = []
    for method, sides in found.items():
        for side, runs in sides.items():
            time_of, peak, losses = _seconds(runs), _peak(runs), runs[-1].losses
            rows.append(
                [
                    method.upper(),
                    side,
                    f"{time_of.median:.3f} ({time_of.low:.3f} to {time_of.high:.3f})",
                    f"{peak.median:,.0f} ({peak.low:,.0f} to {peak.high:,.0f})",
                    f"{runs[-1].answer_tokens:.1f}" if method == "grpo" else "-",
                    f"{losses[0]:.4f} to {losses[-1]:.4f}",
                ]
            )
    return rows


def _seconds(runs: list[Measured]) -> Spread:
    return Spread(tuple(value for run in runs for value in run.seconds))


def _peak(runs: list[Measured]) -> Spread:
    return Spread(tuple(run.peak_bytes / MIB for run in runs))


def add_settings(parser: argparse.ArgumentParser) -> None:
    """An option for each field of `Setting`."""
    for name, default in asdict(Setting()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)


def setting_of(given: argparse.Namespace) -> Setting:
    """The setting that the options name.

    Raises:
        SystemExit: a number that cannot be measured.
    """
    setting = Setting(**{name: getattr(given, name) for name in asdict(Setting())})
    if min(setting.warmup, setting.steps, setting.pairs, setting.prompts, setting.threads) < 1:
        raise SystemExit("warmup, steps, pairs, prompts and threads are at least 1")
    return setting


def main() -> None:
    """One side of one method, for the process that asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=(OURS, THEIRS), required=True)
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    add_settings(parser)
    given = parser.parse_args()
    setting = setting_of(given)
    torch.set_num_threads(setting.threads)
    side = our_side if given.side == OURS else their_side
    print(json.dumps(asdict(side(given.method, given.folder, setting))))


if __name__ == "__main__":
    main()
