"""What calibration sees, against the inputs themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from firsthand.llm.data.loading import TokenStream
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.quantization import calibration
from firsthand.llm.quantization.calibration import calibrate, calibration_windows, least_tokens
from firsthand.llm.quantization.errors import QuantizationError
from firsthand.llm.quantization.shapes import matrix_shapes, output_matrix

MakeModel = Callable[..., Transformer]
Draw = Callable[[int, int], NDArray[np.int64]]


def _inputs(model: Transformer, tokens: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Every input of every matrix, kept whole."""
    found: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):

            def keep(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                found[f"{name}.weight"] = inputs[0]

            handles.append(module.register_forward_pre_hook(keep))
    with torch.no_grad():
        found[output_matrix(model.config)] = model.hidden(torch.from_numpy(tokens))
    for handle in handles:
        handle.remove()
    return {name: x.flatten(end_dim=-2).double().numpy() for name, x in found.items()}


def test_peaks_and_hessians_of_every_matrix(
    variant: str, model_of: MakeModel, tokens_of: Draw
) -> None:
    model, tokens = model_of(variant), tokens_of(11, 20)  # more than one batch
    expected = _inputs(model, tokens)
    found = calibrate(model, tokens, hessians=True)
    wanted = set(matrix_shapes(model.config)) - (
        set() if model.config.tied else {"embedding.weight"}
    )
    assert set(found) == set(expected) == wanted
    for name, statistics in found.items():
        x = expected[name]
        assert statistics.rows == 220
        np.testing.assert_allclose(statistics.peaks.numpy(), np.abs(x).max(axis=0), rtol=1e-4)
        assert statistics.hessian is not None
        np.testing.assert_allclose(
            statistics.hessian.numpy(), x.T @ x, rtol=1e-4, atol=1e-4 * np.abs(x.T @ x).max()
        )


def test_a_percentile_of_each_channel(model_of: MakeModel, tokens_of: Draw) -> None:
    model, tokens = model_of("plain"), tokens_of(6, 20)
    expected = _inputs(model, tokens)
    found = calibrate(model, tokens, percentile=80.0)
    for name, statistics in found.items():
        by_channel = np.percentile(np.abs(expected[name]), 80, axis=0)
        np.testing.assert_allclose(statistics.peaks.numpy(), by_channel, rtol=1e-3, atol=1e-6)
        assert statistics.hessian is None


def test_a_long_text_is_sampled_at_even_distances(
    model_of: MakeModel, tokens_of: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "SAMPLED_ROWS", 80)
    model, tokens = model_of("plain"), tokens_of(27, 10)  # batches of 80 and 30 inputs, every third
    expected = _inputs(model, tokens)
    for name, statistics in calibrate(model, tokens, percentile=70.0).items():
        by_channel = np.percentile(np.abs(expected[name][::3]), 70, axis=0)
        np.testing.assert_allclose(statistics.peaks.numpy(), by_channel, rtol=1e-3, atol=1e-6)
        assert statistics.rows == 270


def test_hooks_are_gone_afterwards(model_of: MakeModel, tokens_of: Draw) -> None:
    model = model_of("plain")
    model.train()
    calibrate(model, tokens_of(2, 20))
    bad = model_of("plain")
    with torch.no_grad():
        bad.blocks[1].feed_forward_norm.weight.fill_(3e38)
    with pytest.raises(QuantizationError, match=r"blocks.1.feed_forward.\w+.weight are not finite"):
        calibrate(bad, tokens_of(2, 20))
    for each in (model, bad):
        assert not any(module._forward_pre_hooks for module in each.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def _stream(tokens: int) -> TokenStream:
    return TokenStream([np.arange(tokens, dtype=np.uint32)], 0)


def test_windows_are_whole_apart_and_spread() -> None:
    windows = calibration_windows(_stream(1000), 60, 20)
    assert windows.tolist() == [list(range(s, s + 20)) for s in (0, 320, 660)]
    assert calibration_windows(_stream(1000), 61, 20).shape == (4, 20)
    everything = calibration_windows(_stream(1000), 10**6, 30)
    assert everything.shape == (33, 30)
    assert np.unique(everything).size == 990
    assert calibration_windows(_stream(7), 100, 30).tolist() == [list(range(7))]
    assert calibration_windows(_stream(100), 3, 30).shape == (1, 3)


@pytest.mark.parametrize(("tokens", "least"), [(0, 1), (1, 2), (99, 100)])
def test_too_little_text(tokens: int, least: int) -> None:
    with pytest.raises(QuantizationError, match=f"needs {least} tokens .* text has {tokens}"):
        calibration_windows(_stream(tokens), 50, 10, least=least)


def test_as_many_tokens_as_the_widest_input(model_of: MakeModel) -> None:
    assert least_tokens(matrix_shapes(model_of("plain").config)) == 36
    config: Any = model_of("wide-heads").config
    assert least_tokens(matrix_shapes(config)) == 48
