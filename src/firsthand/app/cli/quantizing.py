"""A model in 8 bits: `firsthand quantize`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from firsthand.app.cli.options import DeviceOption, StepOption, open_model, source_of
from firsthand.app.cli.stack import one_sentence, progress_bar
from firsthand.course.errors import FirsthandError

if TYPE_CHECKING:
    from rich.progress import Progress

    from firsthand.llm.quantization.artefact import QuantizedModel
    from firsthand.llm.quantization.settings import QuantizationSettings
    from firsthand.llm.training.trained import Trained

DEFAULT_FOLDER = "int8"
DEFAULT_GROUP = 32
EMBEDDED_BYTES = 4_000_000
TEXT_TOKENS = 1 << 20
BATCH_WINDOWS = 16


def quantize(
    model: Annotated[
        Path,
        typer.Argument(
            help="A run, a folder in Hugging Face's format, or a GGUF file.", show_default=False
        ),
    ],
    out: Annotated[
        Optional[Path],  # noqa: UP045  (typer reads it at run time)
        typer.Option("--out", "-o", help="Default: int8 in the folder of the model."),
    ] = None,
    weights: Annotated[
        str, typer.Option(help="Which weights share a scale: channel, tensor or group.")
    ] = "channel",
    group_size: Annotated[
        int, typer.Option(help=f"With --weights group: how many; {DEFAULT_GROUP} if not given.")
    ] = 0,
    asymmetric: Annotated[
        bool, typer.Option("--asymmetric", help="A zero point beside each scale.")
    ] = False,
    activations: Annotated[
        str, typer.Option(help="dynamic: rounded row by row; none: only weights are integers.")
    ] = "dynamic",
    cache: Annotated[str, typer.Option(help="Keys and values: int8 or float32.")] = "int8",
    method: Annotated[
        str, typer.Option(help="nearest, or gptq: later weights take up earlier errors.")
    ] = "nearest",
    smooth: Annotated[
        float, typer.Option(help="SmoothQuant's α, e.g. 0.5; 0 is off.", metavar="ALPHA")
    ] = 0.0,
    percentile: Annotated[
        float, typer.Option(help="Clip weights beyond this percentile; 100 clips none.")
    ] = 100.0,
    text: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="Text to calibrate with: a file, a folder, hf:NAME. Repeatable. Default: the "
            "run's training text, else embedded."
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Of calibration text.")] = 8192,
    measure: Annotated[
        int, typer.Option(help="Validation tokens to measure on, about; 0 is the whole split.")
    ] = 32_768,
    step: StepOption = 0,
    device: DeviceOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, no table.")] = False,
) -> None:
    """Round a model to 8 bits, and show what that costs.

    The folder it leaves is what the CPU engine runs, and `firsthand evaluate` reads it too.
    """
    with one_sentence():
        from firsthand.llm.model.settings import build
        from firsthand.llm.quantization.artefact import is_quantized, require_free, save_quantized
        from firsthand.llm.quantization.settings import QuantizationSettings

        if group_size and weights != "group":
            raise FirsthandError("--group-size goes with --weights group.")
        if measure < 0:
            raise FirsthandError(f"--measure is at least 0; not {measure}.")
        if weights == "group":
            group_size = group_size or DEFAULT_GROUP
        scheme = {
            "weights": weights,
            "group_size": group_size,
            "asymmetric": asymmetric,
            "percentile": percentile,
        }
        record = {
            "scheme": scheme,
            "activations": activations,
            "cache": cache,
            "method": method,
            "smoothing": smooth,
            "calibration_tokens": tokens,
        }
        settings = build(QuantizationSettings, record)
        if is_quantized(model):
            raise FirsthandError(f"{model} is quantized already; name the run that it came from.")
        folder = out or (model if model.is_dir() else model.parent) / DEFAULT_FOLDER
        require_free(folder)
        trained = open_model(model, device, step)
        with progress_bar(words=18) as bar:
            quantized = _quantized(trained, settings, text, measure, _shown(bar))
        run = None if trained.run is None else str(trained.run.folder.resolve())
        quantized = quantized.noted(source=str(model), run=run, step=trained.step)
        save_quantized(folder, quantized, trained.tokenizer)
    figures = {
        "folder": str(folder),
        "settings": settings.to_record(),
        **{name: value for name, value in quantized.record.items() if name != "run"},
    }
    if as_json:
        print(json.dumps(figures))
        return
    _print(figures)


def _shown(bar: Progress) -> Callable[[str, int, int], None]:
    task = bar.add_task("reading text", total=None)
    return lambda stage, done, total: bar.update(
        task, description=stage, completed=done, total=total
    )


def _quantized(
    trained: Trained,
    settings: QuantizationSettings,
    text: list[str] | None,
    measure: int,
    report: Callable[[str, int, int], None],
) -> QuantizedModel:
    from firsthand.llm.parts import FAST
    from firsthand.llm.quantization.calibration import calibration_windows, least_tokens
    from firsthand.llm.quantization.comparison import compare
    from firsthand.llm.quantization.quantizing import quantize
    from firsthand.llm.quantization.shapes import matrix_shapes
    from firsthand.llm.quantization.texts import calibration_and_validation
    from firsthand.llm.training.evaluation import byte_lengths

    config, run = trained.model.config, trained.run
    source = None
    if text or run is None:
        source = source_of(text, "text", None if text else EMBEDDED_BYTES)
    calibration, validation = calibration_and_validation(trained, source, TEXT_TOKENS)
    length = config.context if run is None else run.config.sequence_length
    least = least_tokens(matrix_shapes(config)) if settings.calibrates else 1
    windows = calibration_windows(
        calibration, max(settings.calibration_tokens, least), length, least=least
    )
    quantized = quantize(trained.model, settings, windows, report=report)
    # As `firsthand evaluate` does: each window but the first has half of it as context.
    overlap = length // 2
    fresh = BATCH_WINDOWS * (length - overlap)
    found = compare(
        trained.model,
        quantized,
        FAST,
        validation,
        lengths=byte_lengths(trained.tokenizer),
        sequence_length=length,
        overlap=overlap,
        batch_size=BATCH_WINDOWS,
        max_batches=-(-measure // fresh),
        report=report,
    )
    whole = found["tokens"] == len(validation)
    return quantized.noted(evaluation={**found, "whole_split": whole})


def _print(figures: dict[str, Any]) -> None:
    from rich.table import Table

    from firsthand.app.cli.terminal import console

    out = console()
    table = Table("matrix", box=None, pad_edge=False)
    for column in ("shape", "weights", "outputs", "scales"):
        table.add_column(column, justify="right")
    for row in figures["layers"]:
        output = row["output_error"]
        table.add_row(
            row["name"].replace(".weight", ""),
            f"{row['rows']} x {row['columns']}",
            f"{row['weight_error']:.3%}",
            "-" if output is None else f"{output:.3%}",
            f"{row['smallest_scale']:.2g} to {row['largest_scale']:.2g}",
        )
    out.print("Relative errors, in the Frobenius norm; of outputs on calibration text.")
    out.print(table)
    found = figures["evaluation"]
    part = ", all of the validation text" if found["whole_split"] else " of the validation text"
    out.print()
    totals = Table("", "before", "after", "", box=None, pad_edge=False)
    for name, unit in (("bytes", "weights, bytes"), ("cache_bytes", "cache, bytes a token")):
        before, after = figures[f"{name}_before"], figures[f"{name}_after"]
        totals.add_row(unit, f"{before:,}", f"{after:,}", f"{before / after:.2f} x less")
    bits = [found[f"bits_per_byte_{when}"] for when in ("before", "after")]
    totals.add_row("bits per byte", *(f"{b:.5f}" for b in bits), f"{found['loss_percent']:+.3f} %")
    out.print(totals)
    out.print(
        f"Bits per byte on {found['tokens']:,} tokens{part}.\n{figures['folder']}",
        highlight=False,
        markup=False,
    )
