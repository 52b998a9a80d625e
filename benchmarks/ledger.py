"""Peak memory of a training step: what the ledger predicts from the config, and what is measured.

Each preset in settings that vary rows, length, precision, checkpointing, optimizer and
micro-batches; two real updates of the training loop on random tokens. On a CPU the measure is
PyTorch's own record of allocations, with `--device cuda` the peak of its allocator. One process
for each preset, one setting after the other. The CPU's figures are counts: they are the same in
every run and on every machine, whatever else it does.

    python -m benchmarks.ledger [--preset laptop-10m] [--device cuda]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.harness import in_own_process, report
from firsthand.llm.audit.ledger import StepSettings, training_ledger
from firsthand.llm.training.config import RunConfig
from firsthand.llm.training.presets import run_config

PRESETS = ("nano", "laptop-10m", "full-100m")
HALF = "bfloat16"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is varied; the rest is the preset's."""

    rows: int
    length: int
    precision: str = "float32"
    checkpoint_blocks: bool = False
    optimizer: str = "adamw"
    micro_batches: int = 1
    average: float = 0.0
    flow: bool = False

    def config(self, preset: str) -> RunConfig:
        """The preset's run, so changed."""
        found = run_config(
            preset, [f"training.precision={self.precision}", f"optimizer.kind={self.optimizer}"]
        )
        training = replace(
            found.training,
            batch_size=self.rows * self.micro_batches,
            micro_batch=self.rows,
            sequence_length=self.length,
            checkpoint_blocks=self.checkpoint_blocks,
            average=self.average,
            flow_every=1 if self.flow else 0,
            compile=False,
        )
        return replace(found, training=training)


def _settings(long: int, short: int, rows: int) -> list[Setting]:
    """Fourteen: two lengths of float32 and a shorter one of bfloat16, which few CPUs are fast in.

    Args:
        long, short: tokens of a row.
        rows: the most.
    """
    brief = short // 4
    return [
        Setting(rows=1, length=long),
        Setting(rows=rows, length=short),
        Setting(rows=rows, length=long, optimizer="muon"),
        Setting(rows=1, length=short, optimizer="muon"),
        Setting(rows=rows, length=long, checkpoint_blocks=True),
        Setting(rows=rows, length=short, checkpoint_blocks=True, optimizer="muon"),
        Setting(rows=1, length=short, micro_batches=2),
        Setting(rows=1, length=short, optimizer="muon", average=0.99),
        Setting(rows=1, length=short, flow=True),
        Setting(rows=1, length=brief, optimizer="muon", micro_batches=2, flow=True),
        Setting(rows=1, length=brief, precision=HALF),
        Setting(rows=rows, length=brief, precision=HALF, optimizer="muon"),
        Setting(rows=rows, length=brief, precision=HALF, checkpoint_blocks=True),
        Setting(rows=1, length=brief, precision=HALF, optimizer="muon", checkpoint_blocks=True),
    ]


SETTINGS = {
    "nano": _settings(256, 128, 8),
    "laptop-10m": _settings(512, 256, 4),
    "full-100m": _settings(1024, 256, 2),
}


def measured(preset: str, device: str) -> dict[str, Any]:
    """Peaks of a preset in all settings, in this process."""
    from firsthand.llm.audit.allocations import measured_peak
    from firsthand.llm.parts import FAST

    peaks = [
        measured_peak(setting.config(preset), FAST, device=device) for setting in SETTINGS[preset]
    ]
    return {"peaks": peaks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, help="this one alone; nothing is stored")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measured(options.preset, options.device)))
        return
    presets = (options.preset,) if options.preset else PRESETS
    rows, errors = [], {}
    for preset in presets:
        words = ("--child", "--preset", preset, "--device", options.device)
        peaks = in_own_process("ledger", *words)["peaks"]
        found = []
        for setting, peak in zip(SETTINGS[preset], peaks, strict=True):
            config = setting.config(preset)
            settings = StepSettings.of(config, options.device)
            ledger = training_ledger(config.model, settings)
            found.append(ledger.total / peak - 1.0)
            rows.append([preset, *_shown(setting), ledger.moment, *_figures(ledger.total, peak)])
        errors[preset] = max(map(abs, found))
    results: dict[str, Any] = {"worst_error": max(errors.values()), "settings": len(rows)}
    results |= {f"{preset}_worst_error": error for preset, error in errors.items()}
    columns = ["preset", "rows x tokens", "setting", "peak at", "predicted", "measured", "error"]
    name = "ledger" if options.device == "cpu" else "ledger-gpu"
    note = "MB of PyTorch's allocator; weights, gradients and optimizer are float32."
    report(name, columns, rows, results, note=note, store=not options.preset)


def _shown(setting: Setting) -> tuple[str, str]:
    words = [setting.optimizer, *([HALF] if setting.precision == HALF else [])]
    words += ["checkpointed"] if setting.checkpoint_blocks else []
    words += ["averaged"] if setting.average else []
    words += ["flow"] if setting.flow else []
    times = f"{setting.micro_batches} x " if setting.micro_batches > 1 else ""
    return f"{times}{setting.rows} x {setting.length}", ", ".join(words)


def _figures(predicted: int, peak: int) -> tuple[str, str, str]:
    error = predicted / peak - 1.0
    return f"{predicted / 1e6:,.2f}", f"{peak / 1e6:,.2f}", f"{error:+.4%}"


if __name__ == "__main__":
    main()
