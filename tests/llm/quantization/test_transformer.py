"""The quantized Transformer, against the INT8 contract written out in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from firsthand.llm.generation.decoding import generate
from firsthand.llm.generation.sampling import Sampling
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST, REFERENCE
from firsthand.llm.quantization.artefact import QuantizedModel
from firsthand.llm.quantization.cache import QuantizedCache
from firsthand.llm.quantization.quantizing import quantize
from firsthand.llm.quantization.schemes import QuantizedMatrix, Scheme, quantize_matrix
from firsthand.llm.quantization.settings import QuantizationSettings
from firsthand.llm.quantization.transformer import QuantizedLinear, quantized_transformer

MakeModel = Callable[..., Transformer]
Draw = Callable[[int, int], NDArray[np.int64]]
SCHEMES = {
    "channel": Scheme(),
    "tensor": Scheme(weights="tensor"),
    "group": Scheme(weights="group", group_size=12),
    "asymmetric": Scheme(asymmetric=True),
    "asymmetric-group": Scheme(weights="group", group_size=12, asymmetric=True),
}


def _product(x: NDArray[np.float32], matrix: QuantizedMatrix) -> NDArray[np.float32]:
    """The contract, number by number: integers in int64, everything else in float32."""
    width = x.shape[1]
    reach = 127 if matrix.zeros is None else 255
    levels = min(2**15 - 1, (2**31 - 1) // (reach * width))
    out = np.zeros((len(x), len(matrix.values)), np.float32)
    for m, row in enumerate(x):
        peak = np.abs(row).max()
        inverse = np.float32(levels) / peak
        integers = np.rint(row * inverse).astype(np.int64)
        scale = np.float32(peak / np.float32(levels))
        for n, weights in enumerate(matrix.values.astype(np.int64)):
            total = np.float32(0)
            for group in range(matrix.groups):
                columns = slice(group * matrix.group_size, (group + 1) * matrix.group_size)
                zero = 0 if matrix.zeros is None else int(matrix.zeros[n, group])
                exact = int(integers[columns] @ (weights[columns] - zero))
                assert abs(exact) < 2**31
                total = np.float32(total + np.float32(exact) * matrix.scales[n, group])
            out[m, n] = total * scale
    return out


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@given(seed=st.integers(0, 10**6), size=st.floats(1e-3, 1e3))
def test_a_product_is_the_contract_to_the_last_bit(scheme: Scheme, seed: int, size: float) -> None:
    generator = np.random.default_rng(seed)
    weight = generator.normal(size=(5, 24)).astype(np.float32)
    x = (size * generator.normal(size=(3, 24))).astype(np.float32)
    matrix = quantize_matrix(weight, scheme)
    found = QuantizedLinear(matrix)(torch.from_numpy(x).view(3, 1, 24))
    assert found.shape == (3, 1, 5)
    np.testing.assert_array_equal(found.view(3, 5).numpy(), _product(x, matrix))


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_its_weight_is_what_the_integers_stand_for(scheme: Scheme) -> None:
    weight = np.random.default_rng(1).normal(size=(7, 24)).astype(np.float32)
    matrix = quantize_matrix(weight, scheme)
    for activations in ("dynamic", "none"):
        linear = QuantizedLinear(matrix, torch.ones(7), activations)  # type: ignore[arg-type]
        np.testing.assert_array_equal(linear.weight.numpy(), matrix.dequantized())
        x = torch.randn(4, 24, generator=torch.Generator().manual_seed(0))
        exact = x.double() @ linear.weight.double().T + 1
        torch.testing.assert_close(linear(x).double(), exact, rtol=0, atol=5e-3)
        if activations == "none":
            torch.testing.assert_close(linear(x).double(), exact, rtol=1e-6, atol=1e-6)


def test_wide_sums_stay_within_32_bits() -> None:
    """The worst a row can be: every activation and every weight at its end."""
    for scheme, reach in ((Scheme(), 127), (Scheme(asymmetric=True), 255)):
        weight = np.ones((1, 70_000), np.float32)
        linear = QuantizedLinear(quantize_matrix(weight, scheme))
        assert linear.levels * reach * 70_000 <= 2**31 - 1
        assert (linear.levels + 1) * reach * 70_000 > 2**31 - 1
        assert float(linear(torch.full((1, 70_000), 3.0))) == pytest.approx(210_000, rel=1e-4)


@pytest.mark.parametrize("activations", ["dynamic", "none"])
def test_the_function_of_every_variant_stays_close(
    variant: str, activations: Any, model_of: MakeModel, tokens_of: Draw
) -> None:
    _require_close(model_of(variant), tokens_of(2, 20), Scheme(), activations)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("activations", ["dynamic", "none"])
def test_the_function_stays_close_with_every_scheme(
    activations: Any, scheme: Scheme, model_of: MakeModel, tokens_of: Draw
) -> None:
    _require_close(model_of("mqa-bias"), tokens_of(2, 20), scheme, activations)


def _require_close(
    model: Transformer, tokens: NDArray[np.int64], scheme: Scheme, activations: Any
) -> None:
    quantized = quantize(
        model, QuantizationSettings(scheme=scheme, activations=activations), tokens
    )
    rough = quantized_transformer(quantized, REFERENCE)
    assert not any(parameter.is_meta for parameter in rough.parameters())
    with torch.no_grad():
        exact = model(torch.from_numpy(tokens))
        error = (rough(torch.from_numpy(tokens)) - exact).norm() / exact.norm()
    assert 0 < float(error) < (0.2 if scheme.weights == "tensor" else 0.1)


def test_without_rounding_but_of_weights_it_is_the_float_model_of_those_weights(
    variant: str, model_of: MakeModel, tokens_of: Draw
) -> None:
    tokens = torch.from_numpy(tokens_of(2, 20))
    settings = QuantizationSettings(activations="none", cache="float32")
    quantized = quantize(model_of(variant), settings, tokens.numpy())
    expected = _filled(quantized)
    found = quantized_transformer(quantized, REFERENCE)
    with torch.no_grad():
        torch.testing.assert_close(found(tokens), expected(tokens), rtol=1e-4, atol=1e-4)
        targets = tokens.roll(-1, dims=1)
        targets[:, -3:] = -100
        ours, theirs = found.loss(tokens, targets), expected.loss(tokens, targets)
    assert int(ours.tokens) == int(theirs.tokens) == 34
    assert float(ours.total) == pytest.approx(float(theirs.total), rel=1e-5)


@pytest.mark.parametrize("cache", ["int8", "float32"])
@pytest.mark.parametrize("sizes", [[1] * 30, [11, 1, 1, 7, 10]])
def test_cached_equals_uncached(
    variant: str, sizes: list[int], cache: Any, model_of: MakeModel, tokens_of: Draw
) -> None:
    tokens = torch.from_numpy(tokens_of(2, 30))
    settings = QuantizationSettings(cache=cache)
    quantized = quantize(model_of(variant), settings, tokens.numpy())
    model = quantized_transformer(quantized, REFERENCE)
    kept = model.new_cache(2, piece=12)
    assert isinstance(kept, QuantizedCache) is (cache == "int8")
    with torch.no_grad():
        whole = model(tokens)
        pieces = [model(piece, cache=kept) for piece in torch.split(tokens, sizes, dim=1)]
    # Rounding turns on the last bit of a float, so a few numbers may differ by a step.
    difference = (torch.cat(pieces, dim=1) - whole).norm() / whole.norm()
    assert float(difference) < 2e-3


def test_the_cache_setting_shows_in_a_pass_without_a_cache(
    model_of: MakeModel, tokens_of: Draw
) -> None:
    tokens = torch.from_numpy(tokens_of(2, 20))
    quantized = quantize(model_of("plain"), QuantizationSettings(), tokens.numpy())
    floats = replace(quantized, settings=replace(quantized.settings, cache="float32"))
    with torch.no_grad():
        rounded, plain = (
            quantized_transformer(each, REFERENCE)(tokens) for each in (quantized, floats)
        )
    assert 1e-5 < float((rounded - plain).norm() / plain.norm()) < 0.02


def test_the_tied_output_is_a_product_of_integers(model_of: MakeModel, tokens_of: Draw) -> None:
    tokens = torch.from_numpy(tokens_of(1, 9))
    quantized = quantize(model_of("plain"), QuantizationSettings(), tokens.numpy())
    model = quantized_transformer(quantized, REFERENCE)
    matrix = quantized.matrices["embedding.weight"]
    with torch.no_grad():
        hidden = model.hidden(tokens)
        np.testing.assert_array_equal(model(tokens)[0].numpy(), _product(hidden[0].numpy(), matrix))
        np.testing.assert_array_equal(
            model.parts.embed(tokens, model.embedding.weight)[0].numpy(),
            matrix.dequantized()[tokens[0]],
        )


def test_the_loss_is_that_of_the_logits(model_of: MakeModel, tokens_of: Draw) -> None:
    for name in ("plain", "gqa-untied"):
        tokens = torch.from_numpy(tokens_of(31, 40))  # more than one piece of rows
        quantized = quantize(model_of(name), QuantizationSettings(), tokens.numpy())
        model = quantized_transformer(quantized, REFERENCE)
        targets = tokens.roll(-1, dims=1)
        targets[3, 5:] = -1
        with torch.no_grad():
            logits = model(tokens).flatten(end_dim=1).double()
        expected = nn.functional.cross_entropy(
            logits, targets.flatten(), ignore_index=-1, reduction="sum"
        )
        # With gradients enabled too: nothing may fall back on the float weights.
        assert torch.equal(model(tokens).flatten(end_dim=1).double(), logits)
        assert float(model.loss(tokens, targets).total) == pytest.approx(float(expected), rel=1e-6)
        none = model.loss(tokens, torch.full_like(targets, -100))
        assert (float(none.total), int(none.tokens)) == (0.0, 0)


def test_packed_documents_and_padding(model_of: MakeModel, tokens_of: Draw) -> None:
    """Without positions, for keys turned by other angles are rounded otherwise."""
    tokens = torch.from_numpy(tokens_of(1, 24))
    model = quantized_transformer(
        quantize(model_of("post"), QuantizationSettings(), tokens.numpy()), REFERENCE
    )
    documents = torch.tensor([[0] * 10 + [1] * 14])
    starts = torch.tensor([6])
    with torch.no_grad():
        packed = model(tokens, documents=documents)[:, 10:]
        padded = model(tokens, starts=starts)[:, 6:]
        _close(packed, model(tokens[:, 10:]))
        _close(padded, model(tokens[:, 6:]))


def test_it_generates_and_does_not_train(learnt: Any) -> None:
    quantized = quantize(learnt.model, QuantizationSettings(), _windows(learnt))
    model = quantized_transformer(quantized, FAST)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    sampling = Sampling(temperature=0.0, max_new_tokens=24)
    texts = [
        generate(each, ["455 plus 3 makes ", "12"], sampling, tokenizer=learnt.tokenizer)
        for each in (learnt.model, model)
    ]
    assert len(texts[1][0].text) > 10
    assert [result.text for result in texts[1]] == [result.text for result in texts[0]]


def test_it_moves_whole(model_of: MakeModel, tokens_of: Draw) -> None:
    quantized = quantize(model_of("plain"), QuantizationSettings(), tokens_of(2, 20))
    model = quantized_transformer(quantized, REFERENCE).to("meta")
    tensors = (*model.parameters(), *model.buffers())
    assert len(tensors) > 20
    assert all(tensor.is_meta for tensor in tensors)


def _filled(quantized: QuantizedModel) -> Transformer:
    """The float model whose weights are the numbers that the integers stand for."""
    model = Transformer(quantized.config, REFERENCE)
    weights = {name: m.dequantized() for name, m in quantized.matrices.items()}
    state = {**weights, **quantized.vectors}
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    return model


def _close(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).norm() / expected.norm()) < 2e-3


def _windows(learnt: Any) -> NDArray[np.int64]:
    windows = np.empty((8, 48), np.int64)
    learnt.train.read(0, windows.reshape(-1))
    return windows


def test_the_config_reaches_the_model(model_of: MakeModel, tokens_of: Draw) -> None:
    quantized = quantize(model_of("alibi-window"), QuantizationSettings(), tokens_of(2, 20))
    model = quantized_transformer(quantized, REFERENCE)
    assert isinstance(model.config, ModelConfig)
    assert model.config == quantized.config
    ring = model.new_cache(1, piece=3)
    assert ring.window == 7
