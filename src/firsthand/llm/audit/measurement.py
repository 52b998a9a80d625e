"""How a machine is measured: what is measured in turns, and the record that comes of it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from firsthand import resources
from firsthand.llm.audit.bandwidth import MemoryProbe, working_sets
from firsthand.llm.audit.ceilings import MachineCeilings, Progress
from firsthand.llm.audit.engine_rates import CALL, CallProbe
from firsthand.llm.audit.errors import AuditError
from firsthand.llm.audit.gpu_bandwidth import TensorProbe, gpu_working_sets
from firsthand.llm.audit.kernel_rates import KernelProbe
from firsthand.llm.audit.overheads import CREW, LAUNCH, OPERATION, LaunchProbe, OverheadProbe
from firsthand.llm.audit.peaks import BY_PANELS, BY_TORCH, PanelProbe, ProductProbe
from firsthand.llm.audit.processor import GraphicsCard, Processor, read_processor
from firsthand.llm.audit.records import DeviceCeilings
from firsthand.llm.audit.rounds import Report, in_rounds

# Of bandwidths, where nothing else runs, at most.
_QUIET_SPREAD = 0.3
# Of the time, where there is a GPU.
_GPU_SHARE = 0.4
# Of the CPU's: memory, products, panels, overheads, the stack's kernels, calls of the engine.
_CPU_SHARES = (0.25, 0.15, 0.05, 0.05, 0.45, 0.05)


def measured(progress: Progress | None, seconds: float) -> MachineCeilings:
    """As `ceilings.measure_machine_ceilings`."""
    if not 0 <= seconds < math.inf:
        raise AuditError(f"measuring takes 0 seconds or more, not {seconds:g}")
    report = progress or (lambda what, share: None)
    report("preparing", 0.0)
    began, processor, notes = time.monotonic(), read_processor(), []
    sizes, small = working_sets(processor.caches, processor.cores, resources.free_memory())
    if small:
        notes.append(f"{small}.")
    if not processor.caches:
        notes.append("This system does not say how large the caches are.")
    if processor.lacks_avx2:
        notes.append(
            "The processor has no AVX2: the compiled loops use narrower SIMD, and INT8 gains less."
        )
    on_gpu = 0.0 if processor.gpu is None else _GPU_SHARE
    cpu = _cpu_ceilings(
        processor,
        sizes,
        seconds * (1 - on_gpu),
        lambda share: report("measuring the CPU", share * (1 - on_gpu)),
    )
    slower = statistics.median(step.spread for step in cpu.bandwidths)
    if slower > _QUIET_SPREAD:
        notes.append(
            f"The median run took {slower:.0%} longer than the best: other programs ran meanwhile, "
            "and a quiet machine may do more."
        )
    gpu: DeviceCeilings | None = None
    if processor.gpu is not None:
        try:
            gpu = _gpu_ceilings(
                processor.gpu,
                seconds * on_gpu,
                lambda share: report("measuring the GPU", 1 - on_gpu + share * on_gpu),
            )
        except RuntimeError as error:  # such as no memory that another process leaves
            notes.append(f"The GPU could not be measured: {str(error).splitlines()[0]}")
    report("done", 1.0)
    return MachineCeilings(
        processor=processor,
        cpu=cpu,
        gpu=gpu,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.monotonic() - began,
        notes=tuple(notes),
    )


def _cpu_ceilings(
    processor: Processor, sizes: Sequence[int], seconds: float, report: Report
) -> DeviceCeilings:
    threads = processor.cores
    memory, products = MemoryProbe(sizes, threads), ProductProbe("cpu", threads)
    panels, overheads = PanelProbe(threads), OverheadProbe(threads)
    kernels, calls = KernelProbe(threads), CallProbe(threads)
    in_rounds((memory, products, panels, overheads, kernels, calls), seconds, report, _CPU_SHARES)
    rates, ours, times, by = products.result(), panels.result(), overheads.result(), BY_TORCH
    if ours >= rates.get("int8", 0.0):
        rates["int8"], by = ours, BY_PANELS
    return DeviceCeilings(
        device="cpu",
        name=processor.model,
        bandwidths=memory.result(),
        flop_rates=rates,
        int8_kernel_rate=ours,
        region_seconds=times[CREW],
        launch_seconds=times[OPERATION],
        memory=processor.memory,
        threads=threads,
        int8_by=by,
        overheads={**times, CALL: calls.result(times[CREW])},
        kernel_rates=kernels.result(),
    )


def _gpu_ceilings(card: GraphicsCard, seconds: float, report: Report) -> DeviceCeilings:
    import torch

    free, _ = torch.cuda.mem_get_info()
    memory = TensorProbe(gpu_working_sets(card, free))
    products, launch = ProductProbe("cuda"), LaunchProbe()
    in_rounds((memory, products, launch), seconds, report)
    rates = products.result()
    return DeviceCeilings(
        device="cuda",
        name=card.name,
        bandwidths=memory.result(),
        flop_rates=rates,
        int8_kernel_rate=0.0,
        region_seconds=0.0,
        launch_seconds=launch.result(),
        memory=card.memory,
        threads=1,
        int8_by=BY_TORCH if "int8" in rates else "",
        overheads={LAUNCH: launch.result()},
    )
