"""The names and shapes from a config, against those of the Transformer itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from firsthand.llm.model.config import parameter_counts
from firsthand.llm.quantization.shapes import matrix_shapes, output_matrix, vector_shapes


def test_every_parameter_is_a_matrix_or_a_vector(
    variant: str, model_of: Callable[[str], Any]
) -> None:
    model = model_of(variant)
    matrices, vectors = matrix_shapes(model.config), vector_shapes(model.config)
    assert not matrices.keys() & vectors.keys()
    own = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert {**matrices, **vectors} == own
    assert set(matrices) == {
        name
        for name in own
        if model.role(name) in ("matrix", "embedding", "output") and "position" not in name
    }
    assert own[output_matrix(model.config)] == tuple(model.output_weight.shape)
    total = sum(parameter_counts(model.config).values())
    assert sum(parameter.numel() for parameter in model.parameters()) == total
