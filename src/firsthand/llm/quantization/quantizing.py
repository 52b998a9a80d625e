"""From a trained model to integers, with a table of what each matrix lost.

The order: smoothing changes the float weights and not their function; then each matrix is rounded
by itself or by GPTQ; then text runs through the float model once more, and at each matrix the
product of integers is compared with the product of floats on the same input.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from firsthand.llm.data.loading import TokenIds
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.quantization.artefact import QuantizedModel, Record
from firsthand.llm.quantization.calibration import (
    InputStatistics,
    calibrate,
    least_tokens,
    linear_layers,
    run,
)
from firsthand.llm.quantization.errors import QuantizationError
from firsthand.llm.quantization.gptq import gptq
from firsthand.llm.quantization.schemes import (
    Floats,
    QuantizedMatrix,
    quantize_matrix,
    require_finite,
)
from firsthand.llm.quantization.settings import QuantizationSettings
from firsthand.llm.quantization.shapes import (
    EMBEDDING,
    matrix_shapes,
    output_matrix,
    vector_shapes,
)
from firsthand.llm.quantization.smoothing import smooth
from firsthand.llm.quantization.transformer import LOSS_ROWS, QuantizedLinear

# Stage, how much of it is done, and all of it.
Report = Callable[[str, int, int], None]
# Tokens of the calibration text on which the outputs are compared.
COMPARED_TOKENS = 2048


def quantize(
    model: Transformer,
    settings: QuantizationSettings,
    windows: TokenIds,
    *,
    report: Report | None = None,
) -> QuantizedModel:
    """A model's weights as integers; the model itself stays as it is.

    Args:
        model: trained, on any device, in any float type.
        settings: the choices.
        windows: (windows, length) of calibration text, by `calibration.calibration_windows`.
            GPTQ and smoothing need as many tokens as the widest matrix has inputs.
        report: is told the stage and how far it is.
    Returns:
        Its record has "layers", a row for each matrix (see `layer_row`), "bytes_before" and
        "bytes_after" of all weights, "cache_bytes_before" and "_after" of a token, and the
        calibration tokens.
    Raises:
        QuantizationError: weights that are not finite, a group that does not divide a matrix, too
            little text, activations that overflow; names the tensor.
    """
    tell = report or (lambda stage, done, total: None)
    shapes = matrix_shapes(model.config)
    before = sum(parameter.nbytes for parameter in model.parameters())
    for name, parameter in model.named_parameters():
        require_finite(_floats(parameter), name)
    _require_text(settings, windows, least_tokens(shapes))
    working = model
    smoothed: list[str] = []
    if settings.smoothing or model.embedding.weight.dtype != torch.float32:
        working = copy.deepcopy(model).float()
    if settings.smoothing:
        statistics = calibrate(
            working,
            windows,
            percentile=settings.scheme.percentile,
            progress=lambda done, total: tell("calibrating", done, total),
        )
        smoothed = smooth(working, statistics, settings.smoothing)
    statistics = {}
    if settings.method == "gptq":
        statistics = calibrate(
            working,
            windows,
            hessians=True,
            progress=lambda done, total: tell("summing x xᵀ", done, total),
        )
    own = {name: _floats(parameter) for name, parameter in working.named_parameters()}
    matrices = {}
    for done, name in enumerate(shapes):
        tell("rounding", done, len(shapes))
        matrices[name] = _rounded(name, own[name], settings, statistics.get(name))
    quantized = QuantizedModel(
        config=model.config,
        settings=settings,
        matrices=matrices,
        vectors={name: own[name] for name in vector_shapes(model.config)},
    )
    few = windows[: max(1, COMPARED_TOKENS // windows.shape[1])]
    errors = output_errors(
        working, quantized, few, lambda done, total: tell("comparing outputs", done, total)
    )
    return quantized.noted(
        layers=[
            layer_row(name, own[name], matrix, errors.get(name), model.config.tied)
            for name, matrix in matrices.items()
        ],
        smoothed=smoothed,
        calibration_tokens=int(windows.size),
        bytes_before=before,
        bytes_after=quantized.nbytes,
        **_cache_bytes(model, settings),
    )


def layer_row(
    name: str, weight: Floats, matrix: QuantizedMatrix, output_error: float | None, tied: bool
) -> Record:
    """What one matrix lost.

    Returns:
        "weight_error": |W - Ŵ| / |W| in the Frobenius norm; "output_error": the same of its
        outputs on calibration text, rounded activations included, None for a table that
        multiplies nothing; "smallest_scale", "median_scale", "largest_scale"; rows, columns and
        bytes before (in float32) and after.
    """
    exact = weight.astype(np.float64)
    size = float(np.linalg.norm(exact))
    return {
        "name": f"{name} (and output)" if tied and name == EMBEDDING else name,
        "rows": matrix.shape[0],
        "columns": matrix.shape[1],
        "bytes_before": weight.nbytes,
        "bytes_after": matrix.nbytes,
        "weight_error": float(np.linalg.norm(exact - matrix.dequantized())) / size if size else 0.0,
        "output_error": output_error,
        "smallest_scale": float(matrix.scales.min()),
        "median_scale": float(np.median(matrix.scales)),
        "largest_scale": float(matrix.scales.max()),
    }


def output_errors(
    model: Transformer,
    quantized: QuantizedModel,
    windows: TokenIds,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """|y - ŷ| / |y| of each matrix in the Frobenius norm, both from the float model's inputs.

    Args:
        model: in float32, whose matrices were rounded.
        quantized: the integers, and how activations are rounded.
        windows: (windows, length) of tokens.
    Returns:
        By the name of the matrix; an untied embedding is not there.
    """
    sums: dict[str, Tensor] = {}
    activations = quantized.settings.activations
    device = model.embedding.weight.device

    def compare(name: str, rough: QuantizedLinear, inputs: Tensor, exact: Tensor) -> None:
        exact = exact.double()
        difference = rough(inputs).double() - exact
        both = torch.stack([difference.square().sum(), exact.square().sum()])
        sums[name] = sums.get(name, torch.zeros_like(both)) + both

    def comparing(name: str, layer: nn.Linear) -> Any:
        bias = None if layer.bias is None else layer.bias.detach()
        rough = QuantizedLinear(quantized.matrices[name], bias, activations).to(device)
        return layer.register_forward_hook(
            lambda module, inputs, output: compare(name, rough, inputs[0], output)
        )

    last = output_matrix(model.config)
    projection = QuantizedLinear(quantized.matrices[last], None, activations).to(device)

    def logits(hidden: Tensor) -> None:
        for rows in torch.split(hidden.flatten(end_dim=1), LOSS_ROWS):
            compare(last, projection, rows, rows @ model.output_weight.T)

    handles = [comparing(name, layer) for name, layer in linear_layers(model).items()]
    try:
        run(model, windows, progress, logits)
    finally:
        for handle in handles:
            handle.remove()
    found = {name: both.sqrt().tolist() for name, both in sums.items()}
    return {name: error / size if size else 0.0 for name, (error, size) in found.items()}


def _rounded(
    name: str,
    weight: Floats,
    settings: QuantizationSettings,
    statistics: InputStatistics | None,
) -> QuantizedMatrix:
    # The embedding's rows are looked up too: a row may not pay for what helps the logits.
    if statistics is None or statistics.hessian is None or name == EMBEDDING:
        return quantize_matrix(weight, settings.scheme, name)
    return gptq(
        weight,
        statistics.hessian.cpu().numpy(),
        settings.scheme,
        damping=settings.damping,
        activation_order=settings.activation_order,
        name=name,
    )


def _require_text(settings: QuantizationSettings, windows: TokenIds, least: int) -> None:
    if windows.ndim != 2 or not windows.size:
        raise QuantizationError(f"calibration needs (windows, length) tokens, not {windows.shape}")
    if settings.calibrates and windows.size < least:
        raise QuantizationError(
            f"GPTQ and smoothing need {least:,} tokens of calibration text, as many as the widest "
            f"matrix has inputs; there are {windows.size:,}"
        )


def _cache_bytes(model: Transformer, settings: QuantizationSettings) -> Record:
    """Of one token, before in float32."""
    config = model.config
    vectors = 2 * config.n_layers * config.kv_heads
    before = vectors * config.head_width * 4
    after = vectors * (config.head_width + 4) if settings.cache == "int8" else before
    return {"cache_bytes_before": before, "cache_bytes_after": after}


def _floats(parameter: Tensor) -> Floats:
    # A copy, for the arrays outlive the model they were read from.
    floats: Floats = parameter.detach().float().cpu().numpy().copy()
    return floats
