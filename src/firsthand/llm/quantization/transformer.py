"""A quantized model on PyTorch: the same Transformer, its products on integers.

What every engine has to compute: a matrix product rounds each row of its input to integers,
multiplies integers exactly, and scales the sum (`kernels.int8_matmul`); the embedding's rows are
looked up as the floats that they stand for, and the same integers make the logits when the output
is tied; keys and values are rounded before attention reads them. The rest is float32.
"""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from firsthand.llm.kernels.int8_matmul.with_torch import (
    activation_levels,
    int8_matmul,
    quantize_rows,
)
from firsthand.llm.model.layers import Attention, FeedForward, Surroundings
from firsthand.llm.model.parts import Cache, Parts
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.quantization.artefact import QuantizedModel
from firsthand.llm.quantization.cache import QuantizedCache, Rounding
from firsthand.llm.quantization.schemes import QuantizedMatrix
from firsthand.llm.quantization.settings import Activations
from firsthand.llm.quantization.shapes import EMBEDDING, OUTPUT, output_matrix

# Rows of logits that exist at once while a loss is computed.
LOSS_ROWS = 512
# q - z of an asymmetric grid.
_ASYMMETRIC_RANGE = 255
_ACCUMULATOR = 2**31 - 1


class QuantizedLinear(nn.Module):
    """x wᵀ + b with the integers of a matrix.

    Args:
        matrix: (out, in).
        bias: (out,) or None.
        activations: "dynamic" rounds each row of x to integers, so many that the sum fits 32
            bits; "none" multiplies x by the numbers that the weights stand for, which are then
            kept in float32.
    """

    values: Tensor
    scales: Tensor
    zeros: Tensor | None
    dequantized: Tensor

    def __init__(
        self,
        matrix: QuantizedMatrix,
        bias: Tensor | None = None,
        activations: Activations = "dynamic",
    ) -> None:
        super().__init__()
        self.dynamic = activations == "dynamic"
        self.group_size = matrix.group_size
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        width = matrix.shape[1]
        if not self.dynamic:
            self.register_buffer("dequantized", torch.from_numpy(matrix.dequantized()))
            return
        self.register_buffer("values", torch.tensor(matrix.values))
        self.register_buffer("scales", torch.tensor(matrix.scales))
        zeros = None if matrix.zeros is None else torch.tensor(matrix.zeros)
        self.register_buffer("zeros", zeros)
        self.levels = activation_levels(width)
        if zeros is not None:
            self.levels = max(1, min(self.levels, _ACCUMULATOR // (_ASYMMETRIC_RANGE * width)))

    @property
    def weight(self) -> Tensor:
        """(out, in): the numbers that the integers stand for."""
        if not self.dynamic:
            return self.dequantized
        parts = self.values.view(*self.scales.shape, self.group_size).float()
        if self.zeros is not None:
            parts -= self.zeros[:, :, None]
        return (parts * self.scales[:, :, None]).view(self.values.shape)

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """The product, in the dtype of x."""
        if not self.dynamic:
            return functional.linear(x.float(), self.dequantized, self.bias).to(x.dtype)
        integers, scales = quantize_rows(x.flatten(end_dim=-2), self.levels)
        if self.zeros is None and self.scales.shape[1] == 1:
            product = int8_matmul(integers, scales, self.values, self.scales[:, 0])
        else:
            product = self._by_groups(integers, scales)
        if self.bias is not None:
            product += self.bias
        return product.view(*x.shape[:-1], product.shape[1]).to(x.dtype)

    def _by_groups(self, integers: Tensor, scales: Tensor) -> Tensor:
        """Each group's sum is exact and has its own scale; the groups are added in float32."""
        total: Tensor | None = None
        for group, columns in enumerate(torch.split(self.values, self.group_size, dim=1)):
            weight = columns.double()
            if self.zeros is not None:
                weight -= self.zeros[:, group, None]
            first = group * self.group_size
            sums = integers[:, first : first + self.group_size].double() @ weight.T
            part = sums.float() * self.scales[:, group]
            total = part if total is None else total + part
        assert total is not None
        return total * scales[:, None]


class QuantizedAttention(Attention):
    """Attention that reads rounded keys and values also where no cache is in use.

    So that a loss over whole texts shows what decoding with the INT8 cache will compute.
    """

    def forward(
        self, x: Float[Tensor, "batch seq d_model"], around: Surroundings
    ) -> Float[Tensor, "batch seq d_model"]:
        """What this sublayer adds to the stream."""
        if around.cache is None:
            # Attention asks a cache for `append` alone.
            around = replace(around, cache=cast(Cache, Rounding()))
        return super().forward(x, around)


class QuantizedFeedForward(FeedForward):
    """The feed-forward without what training saves: its matrices are no `nn.Linear`."""

    def forward(self, x: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq d_model"]:
        """What this sublayer adds to the stream."""
        added: Tensor = self.down(self.activation(self.up(x)))
        return added


def quantized_transformer(quantized: QuantizedModel, parts: Parts) -> Transformer:
    """A Transformer on the CPU that computes what the integers say; for inference alone.

    Args:
        quantized: its settings decide the activations and the cache.
        parts: all but the products with the vocabulary and the cache, which this replaces.
    """
    config, settings = quantized.config, quantized.settings
    projection = QuantizedLinear(
        quantized.matrices[output_matrix(config)], None, settings.activations
    )
    # The weight that a Transformer hands to these parts is a float copy; the integers count.
    parts = replace(
        parts,
        vocabulary_logits=lambda hidden, weight: projection(hidden),
        cross_entropy=lambda hidden, weight, targets: _cross_entropy(projection, hidden, targets),
        kv_cache=QuantizedCache if settings.cache == "int8" else parts.kv_cache,
    )
    with torch.device("meta"):
        model = Transformer(config, parts)
        for layer, block in enumerate(model.blocks):
            feed_forward = QuantizedFeedForward(config, parts)
            block.register_module("feed_forward", feed_forward)
            if settings.cache == "int8":
                block.register_module("attention", QuantizedAttention(config, parts, layer))
    vectors = {name: torch.tensor(vector) for name, vector in quantized.vectors.items()}
    for name, matrix in quantized.matrices.items():
        if name in (EMBEDDING, OUTPUT):
            continue
        path = name.removesuffix(".weight")
        bias = vectors.pop(f"{path}.bias", None)
        place, _, leaf = path.rpartition(".")
        linear = QuantizedLinear(matrix, bias, settings.activations)
        model.get_submodule(place).register_module(leaf, linear)
    # Part of the model, so that it moves to a device with it.
    model.register_module("tied_output" if config.tied else "output", projection)
    vectors[EMBEDDING] = torch.from_numpy(quantized.matrices[EMBEDDING].dequantized())
    model.load_state_dict(vectors, strict=False, assign=True)
    return model.requires_grad_(False).eval()


def _cross_entropy(projection: QuantizedLinear, hidden: Tensor, targets: Tensor) -> Tensor:
    """The sum of the losses over the targets that are not negative."""
    wanted = targets >= 0
    hidden, targets = hidden[wanted], targets[wanted]
    total = hidden.new_zeros((), dtype=torch.float32)
    for rows, right in zip(
        torch.split(hidden, LOSS_ROWS), torch.split(targets, LOSS_ROWS), strict=True
    ):
        total = total + functional.cross_entropy(projection(rows).float(), right, reduction="sum")
    return total
