"""What quantization costs a model that has learnt something, and what its table says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.quantization.calibration import calibration_windows
from firsthand.llm.quantization.comparison import compare
from firsthand.llm.quantization.errors import QuantizationError
from firsthand.llm.quantization.quantizing import quantize
from firsthand.llm.quantization.schemes import Scheme
from firsthand.llm.quantization.settings import QuantizationSettings
from firsthand.llm.quantization.shapes import matrix_shapes

MakeModel = Callable[..., Transformer]
Draw = Callable[[int, int], NDArray[np.int64]]


def _mean_output_error(learnt: Any, **settings: Any) -> float:
    windows = calibration_windows(learnt.train, 2048, 48)
    found = quantize(learnt.model, QuantizationSettings(**settings), windows)
    return float(np.mean([row["output_error"] for row in found.record["layers"]]))


def _compared(learnt: Any, **settings: Any) -> dict[str, Any]:
    windows = calibration_windows(learnt.train, 2048, 48)
    quantized = quantize(learnt.model, QuantizationSettings(**settings), windows)
    return compare(
        learnt.model, quantized, FAST, learnt.validation, lengths=learnt.lengths, overlap=24
    )


@pytest.mark.parametrize("activations", ["dynamic", "none"])
def test_int8_per_channel_loses_less_than_half_a_percent(activations: Any, learnt: Any) -> None:
    found = _compared(learnt, activations=activations)
    assert 0.05 < found["bits_per_byte_before"] < 2  # it has learnt something
    after, before = found["bits_per_byte_after"], found["bits_per_byte_before"]
    assert after != before
    assert abs(found["loss_percent"]) < 0.5
    assert found["loss_percent"] == pytest.approx(100 * (after / before - 1))
    assert found["tokens"] == len(learnt.validation)
    assert found["bytes"] == len(learnt.validation) - 1  # all but the end-of-text


def test_finer_schemes_have_smaller_output_errors(learnt: Any) -> None:
    group = Scheme(weights="group", group_size=16)
    errors = {
        "clipped": _mean_output_error(learnt, scheme=Scheme(percentile=90)),
        "tensor": _mean_output_error(learnt, scheme=Scheme(weights="tensor")),
        "channel": _mean_output_error(learnt),
        "group": _mean_output_error(learnt, scheme=group),
        "asymmetric group": _mean_output_error(learnt, scheme=replace(group, asymmetric=True)),
        "gptq": _mean_output_error(learnt, method="gptq"),
    }
    order = ["clipped", "tensor", "channel", "group", "asymmetric group"]
    found = [errors[name] for name in order]
    assert found == sorted(found, reverse=True)
    assert errors["gptq"] < 0.8 * errors["channel"]
    assert 0.001 < errors["channel"] < 0.02


def test_a_clip_that_is_too_tight_shows_in_bits_per_byte(learnt: Any) -> None:
    tight = _compared(learnt, scheme=Scheme(percentile=75))
    assert tight["loss_percent"] > 5 > _compared(learnt)["loss_percent"]


def test_the_table_is_what_the_layers_give(model_of: MakeModel, tokens_of: Draw) -> None:
    """Each row again, from the float model's inputs and the integers, in float64."""
    model, tokens = model_of("mqa-bias"), tokens_of(3, 30)
    settings = QuantizationSettings(activations="none", cache="float32")
    quantized = quantize(model, settings, tokens)
    seen: dict[str, tuple[Tensor, nn.Linear]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):

            def keep(module: nn.Linear, inputs: tuple[Tensor], out: Tensor, at: str = name) -> None:
                seen[f"{at}.weight"] = inputs[0].double(), module

            module.register_forward_hook(keep)  # type: ignore[arg-type]
    own = dict(model.named_parameters())
    with torch.no_grad():
        hidden = model.hidden(torch.from_numpy(tokens)).double()
        rows = {row["name"].split(" ")[0]: row for row in quantized.record["layers"]}
        assert list(rows) == list(matrix_shapes(model.config))
        for name, row in rows.items():
            exact = own[name].double()
            matrix = quantized.matrices[name]
            rough = torch.from_numpy(matrix.dequantized()).double()
            weight_error = float((exact - rough).norm() / exact.norm())
            assert row["weight_error"] == pytest.approx(weight_error, rel=1e-6)
            inputs = hidden if name == "embedding.weight" else seen[name][0]
            bias = None if name == "embedding.weight" else seen[name][1].bias.double()
            y = nn.functional.linear(inputs, exact, bias)
            error = (nn.functional.linear(inputs, rough, bias) - y).norm() / y.norm()
            assert row["output_error"] == pytest.approx(float(error), rel=1e-3)
            assert (row["rows"], row["columns"]) == tuple(exact.shape)
            assert row["bytes_before"] == exact.numel() * 4
            assert row["bytes_after"] == exact.numel() + 4 * len(exact)
            assert row["largest_scale"] == pytest.approx(float(exact.abs().max()) / 127)
            assert row["smallest_scale"] <= row["median_scale"] <= row["largest_scale"]


def test_rounded_activations_are_in_the_errors(model_of: MakeModel, tokens_of: Draw) -> None:
    """With groups of one weight each only the activations are rounded by much."""
    model, tokens = model_of("plain"), tokens_of(3, 30)
    fine = Scheme(weights="group", group_size=1)
    dynamic, none = (
        quantize(model, QuantizationSettings(scheme=fine, activations=which), tokens).record
        for which in ("dynamic", "none")  # type: ignore[arg-type]
    )
    for one, other in zip(dynamic["layers"], none["layers"], strict=True):
        assert one["output_error"] > 2 * other["output_error"]
        assert one["output_error"] < 1e-3


def test_bytes_before_and_after(model_of: MakeModel, tokens_of: Draw) -> None:
    model, tokens = model_of("gqa-untied"), tokens_of(2, 20)
    found = quantize(model, QuantizationSettings(), tokens)
    sizes = matrix_shapes(model.config).values()
    total = sum(p.numel() for p in model.parameters())
    elements, rows = sum(r * c for r, c in sizes), sum(r for r, _ in sizes)
    assert found.record["bytes_before"] == 4 * total
    assert (
        found.record["bytes_after"] == found.nbytes == elements + 4 * rows + 4 * (total - elements)
    )
    # layers, keys and values, heads, width
    assert found.record["cache_bytes_before"] == 2 * 2 * 2 * 6 * 4
    assert found.record["cache_bytes_after"] == 2 * 2 * 2 * (6 + 4)
    halves = quantize(model.bfloat16(), QuantizationSettings(cache="float32"), tokens).record
    assert halves["bytes_before"] == 2 * total
    assert halves["cache_bytes_after"] == halves["cache_bytes_before"]
    assert model.embedding.weight.dtype == torch.bfloat16


def test_an_untied_embedding_multiplies_nothing(model_of: MakeModel, tokens_of: Draw) -> None:
    found = quantize(model_of("gqa-untied"), QuantizationSettings(method="gptq"), tokens_of(4, 40))
    rows = {row["name"]: row for row in found.record["layers"]}
    assert rows["embedding.weight"]["output_error"] is None
    assert rows["output.weight"]["output_error"] > 0


def test_gptq_rounds_all_but_the_table_of_embeddings(model_of: MakeModel, tokens_of: Draw) -> None:
    model, tokens = model_of("plain"), tokens_of(4, 40)
    nearest, found = (
        quantize(model, QuantizationSettings(method=method), tokens)
        for method in ("nearest", "gptq")  # type: ignore[arg-type]
    )
    for name, matrix in found.matrices.items():
        same = np.array_equal(matrix.values, nearest.matrices[name].values)
        assert same is (name == "embedding.weight")


def test_the_stages_are_told_to_their_end(model_of: MakeModel, tokens_of: Draw) -> None:
    told: list[tuple[str, int, int]] = []
    settings = QuantizationSettings(method="gptq", smoothing=0.5)
    quantize(
        model_of("plain"), settings, tokens_of(11, 20), report=lambda *stage: told.append(stage)
    )
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages == ["calibrating", "summing x xᵀ", "rounding", "comparing outputs"]
    for stage in stages:
        done = [(done, total) for name, done, total in told if name == stage]
        assert done == sorted(done)
        if stage != "rounding":
            assert done[-1][0] == done[-1][1]


@pytest.mark.parametrize(
    "name", ["embedding.weight", "blocks.1.feed_forward.up.weight", "final_norm.weight"]
)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_damaged_weights_are_named(
    name: str, bad: float, model_of: MakeModel, tokens_of: Draw
) -> None:
    model = model_of("plain")
    with torch.no_grad():
        model.get_parameter(name).view(-1)[5] = bad
    with pytest.raises(QuantizationError, match=rf"{name}: 1 of \d+ numbers are not finite"):
        quantize(model, QuantizationSettings(), tokens_of(2, 20))


def test_what_it_needs(model_of: MakeModel, tokens_of: Draw) -> None:
    model = model_of("plain")
    few = tokens_of(1, 35)  # the widest matrix has 36 inputs
    for settings in (QuantizationSettings(method="gptq"), QuantizationSettings(smoothing=0.5)):
        with pytest.raises(QuantizationError, match=r"need 36 tokens .* there are 35"):
            quantize(model, settings, few)
    quantize(model, QuantizationSettings(), few)
    with pytest.raises(QuantizationError, match="tokens, not"):
        quantize(model, QuantizationSettings(), np.empty((0, 4), np.int64))
    nines = QuantizationSettings(scheme=Scheme(weights="group", group_size=9))
    with pytest.raises(QuantizationError, match=r"embedding.weight: groups of 9"):
        quantize(model, nines, few)
