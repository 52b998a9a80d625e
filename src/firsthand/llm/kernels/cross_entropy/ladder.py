"""The ladder of the output projection with cross-entropy."""

from __future__ import annotations

import numpy as np

from firsthand.llm.kernels import triton_support
from firsthand.llm.kernels.cross_entropy import (
    by_token,
    with_numba,
    with_numpy,
    with_torch,
    with_triton,
)
from firsthand.llm.kernels.ladder import AnyArray, Costs, Inputs, Ladder, Outputs, Rung, Shape


def inputs(shape: Shape, generator: np.random.Generator) -> Inputs:
    """hidden: (tokens, width); weight: (vocabulary, width); targets: (tokens,), a few ignored."""
    tokens, width, vocabulary = shape["tokens"], shape["width"], shape["vocabulary"]
    targets = generator.integers(vocabulary, size=tokens)
    targets[generator.uniform(size=tokens) < 0.1] = with_torch.IGNORED
    return {
        "hidden": generator.standard_normal((tokens, width)),
        "weight": generator.standard_normal((vocabulary, width)) / np.sqrt(width),
        "targets": targets,
    }


def oracle(hidden: AnyArray, weight: AnyArray, targets: AnyArray, cotangent: AnyArray) -> Outputs:
    """Token by token, by logaddexp."""
    total = np.float64(0.0)
    dhidden, dweight = np.zeros_like(hidden), np.zeros_like(weight)
    for row, target in enumerate(targets):
        if target < 0:
            continue
        logits = weight @ hidden[row]
        log_total = np.logaddexp.reduce(logits)
        total += log_total - logits[target]
        p = np.exp(logits - log_total)
        dhidden[row] = cotangent * (p @ weight - weight[target])
        dweight += cotangent * np.outer(p, hidden[row])
        dweight[target] -= cotangent * hidden[row]
    return [total, dhidden, dweight]


def _flops(products: int, passes: int) -> Costs:
    def count(products: int, passes: int, shape: Shape) -> int:
        logits = shape["tokens"] * shape["vocabulary"]
        return logits * (products * 2 * shape["width"] + passes)

    return Costs(lambda s: count(1, passes, s), lambda s: count(products, passes + 2, s))


def _least(shape: Shape) -> int:
    return 4 * shape["width"] * (shape["tokens"] + shape["vocabulary"])


def _moved(forward: int, both: int, *, chunk: int = 0) -> Costs:
    """Passes over the logits, and the matrices read (and dweight written) once for each chunk."""

    def count(shape: Shape, passes: int, matrices: int) -> int:
        chunks = -(-shape["tokens"] // chunk) if chunk else 1
        per_chunk = 4 * shape["width"] * shape["vocabulary"] * matrices
        hidden = 4 * shape["width"] * shape["tokens"] * matrices
        return chunks * per_chunk + hidden + 4 * passes * shape["tokens"] * shape["vocabulary"]

    return Costs(lambda s: count(s, forward, 1), lambda s: count(s, both, 4))


def _summed_token_losses(**inputs: object) -> object:
    return with_torch.token_losses(**inputs).sum()  # type: ignore[arg-type]


def _summed_by_token(**inputs: object) -> object:
    return -by_token.token_logprobs(**inputs).sum()  # type: ignore[arg-type]


LADDER = Ladder(
    name="cross_entropy",
    inputs=inputs,
    oracle=oracle,
    differentiable=("hidden", "weight"),
    flops=_flops(3, 4),
    bytes_moved=Costs(_least, lambda shape: 3 * _least(shape)),
    shape={"tokens": 1024, "width": 320, "vocabulary": 8192},
    rungs=(
        Rung(
            "numpy",
            "numpy",
            with_numpy.linear_cross_entropy,
            _moved(11, 15),
            with_numpy.linear_cross_entropy_gradients,
        ),
        Rung(
            "numpy-chunked",
            "numpy",
            with_numpy.chunked_cross_entropy,
            _moved(11, 15, chunk=256),
            with_numpy.chunked_cross_entropy_gradients,
        ),
        Rung("torch", "torch", with_torch.linear_cross_entropy, _moved(4, 8)),
        Rung(
            "torch-chunked",
            "torch",
            with_torch.chunked_cross_entropy,
            _moved(4, 9, chunk=with_torch.CHUNK),
        ),
        Rung(
            "numba-chunked",
            "torch",
            with_numba.chunked_cross_entropy,
            _moved(3, 5, chunk=with_torch.CHUNK),
        ),
        Rung(
            "triton-chunked",
            "torch",
            with_triton.chunked_cross_entropy,
            _moved(2, 6, chunk=4096),
            device=triton_support.device,
            needs=triton_support.NEEDS,
        ),
        Rung(
            "torch-chunked-twice",
            "torch",
            _summed_token_losses,
            _moved(4, 13, chunk=with_torch.CHUNK),
        ),
        # Its last chunk is not computed twice, which these counts leave out.
        Rung("numba-by-token", "torch", _summed_by_token, _moved(3, 8, chunk=512)),
    ),
)
