"""How a model is trained within a budget of memory: `firsthand fit`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from firsthand.app.cli.options import SetOption
from firsthand.app.cli.running import PresetOption
from firsthand.app.cli.stack import one_sentence
from firsthand.course.errors import FirsthandError

if TYPE_CHECKING:
    from rich.table import Table

    from firsthand.llm.audit.budget import Budget
    from firsthand.llm.audit.ceilings import MachineCeilings
    from firsthand.llm.audit.fit import Plan
    from firsthand.llm.training.config import RunConfig


def fit(
    preset: PresetOption = "nano",
    settings: SetOption = None,
    vram: Annotated[str, typer.Option(help="Of a GPU, e.g. 16GB (10^9 bytes) or 15GiB.")] = "",
    ram: Annotated[str, typer.Option(help="To train on a CPU with, e.g. 8GB.")] = "",
    cpu: Annotated[
        bool, typer.Option("--cpu", help="On the CPU. Default: where --vram or --ram says.")
    ] = False,
    length: Annotated[int, typer.Option(help="Tokens in a row. Default: the preset's.")] = 0,
    tokens: Annotated[int, typer.Option(help="To train on. Default: 20 for each parameter.")] = 0,
    reserve: Annotated[
        str, typer.Option(help="Of the budget, kept for what no ledger counts, e.g. 500MB.")
    ] = "",
    ceilings: Annotated[
        Optional[Path],  # noqa: UP045  (typer reads it at run time)
        typer.Option(help="Another machine's record: firsthand machine --json > FILE there."),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", "-o", help="Write the plan, e.g. plan.toml, for train --preset."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, no table.")] = False,
) -> None:
    """Fit a training into a budget of memory: settings, bytes, hours.

    Rows at a time, checkpointing and precision are chosen among all that fit, by predicted speed
    and then memory; what --set names stays. The machine it is for need not be this one.
    """
    with one_sentence():
        from firsthand.llm.audit.fit import fit as fitted

        if out is not None:
            _require_new(out)
        config = _config(preset, settings, length)
        machine = _machine(ceilings)
        given = _budget(vram, ram, cpu, reserve, machine)
        device = None if machine is None else machine.gpu if given.device == "cuda" else machine.cpu
        pinned = {
            name.partition("=")[0].strip().removeprefix("training.")
            for name in settings or ()
            if name.strip().startswith("training.")
        }
        if tokens and "steps" in pinned:
            raise FirsthandError("--tokens decides the steps; leave out --set training.steps.")
        plan = fitted(config, given, device, tokens=tokens, pinned=pinned)
        if out is not None:
            _write(out, plan)
    if as_json:
        print(json.dumps(plan.to_json()))
        return
    _show(plan, machine, ceilings)
    if out is not None:
        _print(f"Written: {out}. Train it: firsthand train --preset {out}")


def _config(preset: str, settings: list[str] | None, length: int) -> RunConfig:
    from firsthand.llm.training.presets import run_config

    overrides = list(settings or ())
    if length < 0:
        raise FirsthandError(f"--length is at least 1; this is {length}.")
    if length:
        context = run_config(preset).model.context
        overrides = [f"model.context={max(context, length)}", *overrides]
        overrides.append(f"training.sequence_length={length}")
    return run_config(preset, overrides)


def _machine(path: Path | None) -> MachineCeilings | None:
    from firsthand.llm.audit.ceilings import MachineCeilings, stored_ceilings

    return stored_ceilings() if path is None else MachineCeilings.load(path)


def _budget(
    vram: str, ram: str, cpu: bool, reserve: str, machine: MachineCeilings | None
) -> Budget:
    """The budget that the options name; without any, all memory of the machine."""
    from firsthand.llm.audit.budget import budget, parsed_amount
    from firsthand.llm.audit.processor import read_processor

    if vram and (ram or cpu):
        raise FirsthandError("--vram is a GPU's and --ram or --cpu the CPU's: name one of them.")
    kept = parsed_amount(reserve) if reserve else None
    if vram:
        return budget("cuda", parsed_amount(vram), kept)
    if ram:
        return budget("cpu", parsed_amount(ram), kept)
    processor = read_processor() if machine is None else machine.processor
    if processor.gpu is not None and not cpu:
        return budget("cuda", processor.gpu.memory, kept)
    if not processor.memory:
        raise FirsthandError("This system does not say how much memory it has: --ram 8GB.")
    return budget("cpu", processor.memory, kept)


def _require_new(out: Path) -> None:
    if out.suffix != ".toml":
        raise FirsthandError(f"--out is a .toml file, which train --preset takes; not {out}.")
    if out.exists():
        raise FirsthandError(f"{out} exists; name another file with --out.")


def _write(out: Path, plan: Plan) -> None:
    from firsthand.llm.audit.budget import amount
    from firsthand.llm.data.files import write_atomically
    from firsthand.llm.model.settings import to_toml

    where = "VRAM" if plan.budget.device == "cuda" else "RAM"
    head = (
        f"# Planned by firsthand fit: {amount(plan.total)} of {amount(plan.budget.memory)} of "
        f"{where}, {plan.tokens:,} tokens.\n"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, (head + to_toml(plan.config)).encode("utf-8"))


# --------------------------------------------------------------------------- what is shown


def _show(plan: Plan, machine: MachineCeilings | None, path: Path | None) -> None:
    from firsthand.app.cli.terminal import console

    out = console()
    for line in _introduction(plan):
        _print(line)
    out.print()
    out.print(_ledger_table(plan))
    out.print()
    for choice in plan.choices:
        _print(f"{choice.name} = {choice.value}: {choice.reason}.")
    out.print()
    for line in _speed(plan, machine, path):
        _print(line)
    _print(_served(plan))
    out.print()
    _print("A step further, all else the same:")
    out.print(_raised_table(plan))


def _introduction(plan: Plan) -> list[str]:
    from firsthand.llm.audit.budget import amount

    training = plan.config.training
    where = "VRAM" if plan.budget.device == "cuda" else "RAM"
    return [
        f"{plan.config.name or 'a model'}: {plan.parameters / 1e6:.1f}M parameters, updates of "
        f"{training.batch_size} rows of {plan.config.sequence_length} tokens, "
        f"{amount(plan.budget.memory)} of {where}.",
        f"The peak is {amount(plan.total)}, {plan.total / plan.budget.memory:.0%} of it, with the "
        f"reserve. Moment: {plan.chosen.ledger.moment}.",
    ]


def _ledger_table(plan: Plan) -> Table:
    from rich.table import Table

    from firsthand.llm.audit.budget import amount

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    for name, count, words in _entries(plan):
        if count:
            share = f"{count / plan.budget.memory:.1%}"
            table.add_row(name, amount(count), share, words)
    return table


def _entries(plan: Plan) -> list[tuple[str, int, str]]:
    """Each category, its bytes, and what there is to say of it."""
    ledger = plan.chosen.ledger
    words = {
        "activations": _layers(ledger.activations),
        "other_activations": "embeddings, last norm, angles",
        "casts": "weights in half precision",
        "workspace": "of one operation at a time",
    }
    found = [
        (name.replace("_", " "), count, words.get(name, ""))
        for name, count in ledger.categories().items()
    ]
    return [
        *found,
        ("reserve", plan.budget.reserve, plan.budget.reserve_reason),
        ("free", plan.budget.memory - plan.total, ""),
    ]


def _layers(activations: tuple[int, ...]) -> str:
    from firsthand.llm.audit.budget import amount

    if not activations:
        return ""
    if max(activations) == min(activations):
        return f"{len(activations)} blocks of {amount(activations[0])}"
    return f"of {len(activations)} blocks, at most {amount(max(activations))} each"


def _speed(plan: Plan, machine: MachineCeilings | None, path: Path | None) -> list[str]:
    from firsthand.llm.audit.budget import amount

    found, chosen = plan.chosen.prediction, plan.chosen
    work = f"An update is {chosen.flops / 1e12:,.2f} TFLOPs and moves {amount(chosen.bytes)}."
    goal = f"{plan.tokens / 1e6:,.1f}M tokens ({plan.tokens / plan.parameters:.3g} a parameter)"
    steps = f"{plan.config.training.steps:,} steps"
    if found is None:
        how = (
            "no such GPU has been measured. There: firsthand machine --json > gpu.json; here: "
            "--ceilings gpu.json"
            if plan.budget.device == "cuda"
            else "this machine has not been measured: firsthand machine"
        )
        hours = plan.total_flops / 1e12 / 3600
        return [
            f"How long it takes is not known: {how}.",
            f"{work} {goal} in {steps} are {plan.total_flops:.3g} FLOPs: {hours:,.0f} hours for "
            "each TFLOP/s that training reaches.",
        ]
    assert machine is not None
    assert plan.hours is not None
    device = machine.gpu if plan.budget.device == "cuda" else machine.cpu
    assert device is not None
    at_most, at_least = ("at most ", "at least ") if found.bound else ("", "")
    lines = [
        f"{at_most}{plan.tokens_per_second:,.0f} tokens/s on {device.name}, "
        f"{found.seconds:.3g} s an update: {goal} in {steps} take {at_least}{_hours(plan.hours)}.",
        f"{work} Predicted from its limits, measured on {machine.measured_at[:10]}"
        f"{f' ({path})' if path else ''}.",
    ]
    if found.bound:
        lines.append(
            "The kernels themselves were not measured there: it is the roofline's bound, and "
            "training is slower."
        )
    lines[0] = lines[0][0].upper() + lines[0][1:]
    return lines


def _served(plan: Plan) -> str:
    """What the trained model needs to answer one text."""
    from firsthand.llm.audit.budget import amount
    from firsthand.llm.audit.ledger import inference_ledger

    ledger = inference_ledger(plan.config.model)
    return (
        f"Trained and in INT8, the CPU engine holds {amount(ledger.total)} for one text of "
        f"{plan.config.model.context} tokens: weights {amount(ledger.weights)}, cache "
        f"{amount(ledger.cache)}, the rest {amount(ledger.logits + ledger.workspace)}."
    )


def _hours(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.0f} minutes"
    return f"{hours:,.1f} hours" if hours < 100 else f"{hours / 24:,.0f} days"


def _raised_table(plan: Plan) -> Table:
    from rich.table import Table

    from firsthand.llm.audit.budget import amount

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    for raised in plan.raised:
        over = raised.total - plan.budget.memory
        verdict = f"{amount(over)} too much" if over > 0 else "fits"
        table.add_row(
            raised.name, f"{raised.before} to {raised.after}", amount(raised.total), verdict
        )
    return table


def _print(text: str) -> None:
    from rich.text import Text

    from firsthand.app.cli.terminal import console

    console().print(Text(text))
