"""A machine's limits as rows of text, for the terminal and the page."""

from __future__ import annotations

from firsthand.llm.audit.ceilings import MachineCeilings
from firsthand.llm.audit.processor import Level, Processor
from firsthand.llm.audit.records import DeviceCeilings
from firsthand.llm.audit.roofline import Step, giga_text, level_of, levels_of, ridge, steps_of
from firsthand.llm.training.report.tables import Table

_UNKNOWN = "the system does not say"
_TITLES = {"cpu": "CPU", "cuda": "GPU"}


def size_text(size: int) -> str:
    """Bytes as a person would write them: 32 KiB, 1.5 MiB."""
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 2**power:
            return f"{size / 2**power:.4g} {unit}"
    return f"{size} bytes"


def seconds_text(seconds: float) -> str:
    """A short time: 180 ns, 7.4 us, 2.1 ms."""
    for least, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= least:
            return f"{seconds / least:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def facts(processor: Processor) -> list[tuple[str, str]]:
    """What the machine is: names and values."""
    found = [
        ("CPU", processor.model),
        ("cores", _cores(processor)),
        ("SIMD", ", ".join(processor.simd) or _UNKNOWN),
        ("caches", ", ".join(map(_cache, processor.caches)) or _UNKNOWN),
        ("RAM", _memory(processor)),
    ]
    card = processor.gpu
    if card is None:
        return [*found, ("GPU", "none that PyTorch can use")]
    words = [
        card.name,
        size_text(card.memory),
        f"compute capability {card.capability}",
        f"{card.multiprocessors} multiprocessors",
        *(f"{level.name} {size_text(level.size)}" for level in card.levels),
    ]
    return [*found, ("GPU", ", ".join(words))]


def bandwidth_table(ceilings: MachineCeilings, device: DeviceCeilings) -> Table:
    """A row for each working set; a memory is named where the sets that it can hold begin."""
    levels, rows, before = levels_of(ceilings, device.device), [], ""
    for measured in device.bandwidths:
        name = level_of(measured.working_set, device, levels)
        rows.append(
            (
                name if name != before else "",
                size_text(measured.working_set),
                *(giga_text(rate) for rate in (measured.read, measured.write, measured.copy)),
                f"{measured.spread:.0%}",
            )
        )
        before = name
    return Table(
        title="GB/s by working set",
        head=("fits", "bytes", "read", "write", "copy", "spread"),
        rows=rows,
        note=(
            f"Of {_threads(device)} together, the best of many runs; spread: how much longer the "
            "median run took."
        ),
    )


def product_table(device: DeviceCeilings, steps: list[Step]) -> Table:
    """The peaks, and from how many FLOPs a byte of each memory they can be reached."""
    rates = dict(device.flop_rates)
    if device.int8_kernel_rate and rates.get("int8") != device.int8_kernel_rate:
        rates["int8, panels"] = device.int8_kernel_rate
    rows = [
        (name, giga_text(rate), *(f"{ridge(rate, step.measured.read):.3g}" for step in steps))
        for name, rate in rates.items()
    ]
    by = f" INT8 by {device.int8_by}." if device.int8_by else ""
    return Table(
        title="Matrix products",
        head=("product", "GFLOP/s", *(f"from {step.level.name}" for step in steps)),
        rows=rows,
        note=f"from: FLOPs for each byte read there that the peak takes at least.{by}",
    )


def overhead_table(device: DeviceCeilings) -> Table:
    """What costs the same whatever the work."""
    return Table(
        title="Overheads",
        head=("once for each", "time"),
        rows=[(name, seconds_text(value)) for name, value in device.overheads.items()],
    )


def measured_state(ceilings: MachineCeilings) -> str:
    """When it was measured, and how long that took."""
    moment = ceilings.measured_at.replace("T", " ").replace("+00:00", " UTC")
    return f"Measured on {moment}, in {ceilings.seconds:.0f} s."


def devices(ceilings: MachineCeilings) -> list[tuple[str, DeviceCeilings, list[Step]]]:
    """Title, limits and measured memories of the CPU and, where there is one, the GPU."""
    found = [d for d in (ceilings.cpu, ceilings.gpu) if d is not None]
    return [
        (f"{_TITLES[d.device]}: {d.name}", d, steps_of(d, levels_of(ceilings, d.device)))
        for d in found
    ]


def _threads(device: DeviceCeilings) -> str:
    if device.device == "cuda":
        return "the whole GPU"
    return "1 thread" if device.threads == 1 else f"{device.threads} threads"


def _cores(processor: Processor) -> str:
    text = str(processor.cores)
    if processor.cores < processor.machine_cores:
        text += f" of {processor.machine_cores}"
    if processor.quota is not None:
        return f"{text}: the control group's quota is {processor.quota:g} cores"
    return f"{text}: the affinity mask" if processor.cores < processor.machine_cores else text


def _cache(level: Level) -> str:
    shared = f" for {level.cores} cores" if level.cores > 1 else ""
    return f"{level.name} {size_text(level.size)}{shared}"


def _memory(processor: Processor) -> str:
    if not processor.memory:
        return _UNKNOWN
    text = size_text(processor.memory)
    if processor.memory < processor.machine_memory:
        text += f" of {size_text(processor.machine_memory)}: the control group's limit"
    return text
