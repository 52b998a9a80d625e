"""SmoothQuant: the formula, an unchanged function, and what it is for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from firsthand.llm.model.transformer import Transformer
from firsthand.llm.quantization.calibration import InputStatistics, calibrate
from firsthand.llm.quantization.quantizing import quantize
from firsthand.llm.quantization.settings import QuantizationSettings
from firsthand.llm.quantization.shapes import matrix_shapes
from firsthand.llm.quantization.smoothing import smooth, smoothing_factors

MakeModel = Callable[..., Transformer]
Draw = Callable[[int, int], NDArray[np.int64]]


def test_the_factors_are_the_formula() -> None:
    x, w = torch.tensor([4.0, 100.0, 0.0, 3.0]), torch.tensor([1.0, 0.25, 2.0, 0.0])
    found = smoothing_factors(x, w, 0.25)
    expected = [4**0.25, 100**0.25 / 0.25**0.75, 1.0, 1.0]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    assert smoothing_factors(x, w, 1.0)[:2].tolist() == pytest.approx([4, 100])
    assert smoothing_factors(x, w, 0.0)[:2].tolist() == pytest.approx([1, 4])


@pytest.mark.parametrize("alpha", [0.3, 0.8])
def test_the_function_does_not_change(
    variant: str, alpha: float, model_of: MakeModel, tokens_of: Draw
) -> None:
    model, tokens = model_of(variant), tokens_of(3, 30)
    statistics = calibrate(model, tokens)
    before = copy.deepcopy(model)
    changed = smooth(model, statistics, alpha)
    with torch.no_grad():
        exact, found = (each.double()(torch.from_numpy(tokens)) for each in (before, model))
    assert float((found - exact).abs().max() / exact.abs().max()) < 1e-5
    own, old = model.state_dict(), before.state_dict()
    moved = {name for name in matrix_shapes(model.config) if not torch.equal(own[name], old[name])}
    assert set(changed) <= moved
    assert len(changed) == len(set(changed))
    config = model.config
    assert any("attention.output" in name for name in changed)
    assert any("feed_forward.down" in name for name in changed) is (config.feed_forward != "gelu")
    assert any("qkv" in name for name in changed) is (config.norm_placement == "pre")
    assert ("output.weight" in changed) is (not config.tied and config.norm_placement == "pre")
    assert torch.equal(own["embedding.weight"], old["embedding.weight"])


@pytest.mark.parametrize("part", ["qkv", "up", "down", "attention.output"])
def test_inputs_and_weights_share_their_size(
    part: str, model_of: MakeModel, tokens_of: Draw
) -> None:
    """With α = 1/2 both sides of every channel end at the same size: √(max|x| max|W|)."""
    model, tokens = model_of("plain"), tokens_of(4, 40)
    names = [name for name in matrix_shapes(model.config) if part in name]
    before, own = calibrate(model, tokens), dict(model.named_parameters())
    # The factors of one fold are in the weights before the next is computed, so look at each
    # side alone: what the activations lost, the weights gained.
    weights = {name: own[name].detach().abs().amax(dim=0).clone() for name in names}
    smooth(model, before, 0.5)
    after = calibrate(model, tokens)
    for name in names:
        gained = own[name].detach().abs().amax(dim=0) / weights[name]
        lost = before[name].peaks / after[name].peaks
        if part in ("down", "attention.output"):
            torch.testing.assert_close(gained, lost, rtol=1e-3, atol=1e-3)
        spread = (after[name].peaks.max() / after[name].peaks.min()).item()
        assert spread < (before[name].peaks.max() / before[name].peaks.min()).item()


def test_query_heads_that_share_a_value_head_share_its_factors(
    model_of: MakeModel, tokens_of: Draw
) -> None:
    model, tokens = model_of("wide-heads"), tokens_of(4, 30)
    name = "blocks.0.attention.output.weight"
    statistics = calibrate(model, tokens)
    own = dict(model.named_parameters())
    before = own[name].detach().double().clone()
    smooth(model, statistics, 0.4)
    # Four query heads of 12 features, two for each value head.
    x = statistics[name].peaks.double().view(2, 2, 12).amax(dim=1)
    w = before.abs().amax(dim=0).view(2, 2, 12).amax(dim=1)
    s = (x**0.4 / w**0.6)[:, None].expand(2, 2, 12).flatten()
    torch.testing.assert_close(own[name].detach().double(), before * s, rtol=1e-5, atol=1e-6)


def test_an_outlying_channel_costs_less() -> None:
    """The reason for it: few levels for activations, one channel a thousand times the rest."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 32, generator=generator)
    x[:, 5] *= 1000
    weight = torch.randn(16, 32, generator=generator)
    s = smoothing_factors(x.abs().amax(dim=0), weight.abs().amax(dim=0), 0.5).float()

    def error(inputs: torch.Tensor, matrix: torch.Tensor) -> float:
        step = inputs.abs().amax(dim=1, keepdim=True) / 127
        found = (inputs / step).round() * step @ matrix.T
        return float((found - x @ weight.T).norm())

    assert error(x / s, weight * s) < 0.2 * error(x, weight)


def test_quantize_leaves_the_model_alone(model_of: MakeModel, tokens_of: Draw) -> None:
    model = model_of("gqa-untied")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = quantize(model, QuantizationSettings(smoothing=0.5), tokens_of(4, 40))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "output.weight" in found.record["smoothed"]
    assert not np.array_equal(found.vectors["final_norm.weight"], before["final_norm.weight"])
    plain = quantize(model, QuantizationSettings(), tokens_of(4, 40))
    assert plain.record["smoothed"] == []


def test_a_dead_channel_is_left_alone(model_of: MakeModel, tokens_of: Draw) -> None:
    model: Any = model_of("plain")
    with torch.no_grad():
        model.blocks[0].attention_norm.weight[4] = 0
        model.blocks[1].feed_forward.up.weight[:, 2] = 0
    statistics: dict[str, InputStatistics] = calibrate(model, tokens_of(3, 30))
    smooth(model, statistics, 0.5)
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
