"""How fast the stack's own kernels run here, each measured by itself at a few standard sizes.

A ceiling says what is possible; a prediction of a whole step needs what a kernel does. None of
these measurements is a step of a model: a step is predicted as the sum of its kernels' work over
these rates, so a wrong sum shows as an error of the prediction.

| name | work counted | size |
|---|---|---|
| product | FLOPs of a linear layer, forward and both gradients | width |
| attention forward, attention backward | FLOPs of its products, whole blocks | width of a head |
| cross-entropy | FLOPs of its three products | width |
| norm, swiglu, rotation (forward, backward) | elements that the forward pass writes | elements |
| addition | elements of a sum in fresh memory | elements |
| adamw | parameters | parameters |
| muon | FLOPs of the products that make a stack of matrices orthogonal | their shorter side |

The rates of the CPU engine are in `engine_rates`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from firsthand.llm.audit.engine_rates import Kind, Measure, engine_kinds, seconds_of
from firsthand.llm.audit.peaks import torch_threads
from firsthand.llm.kernels.adamw.with_numba import adamw
from firsthand.llm.kernels.attention.with_numba import BLOCK, attention
from firsthand.llm.kernels.cross_entropy.with_numba import chunked_cross_entropy
from firsthand.llm.kernels.norms.with_numba import rms_norm
from firsthand.llm.kernels.rope.with_numba import rotate_interleaved
from firsthand.llm.kernels.swiglu.with_numba import swiglu
from firsthand.llm.model.positions import rotary_angles
from firsthand.llm.training.optimizers.newton_schulz import JORDAN, gram_orthogonalize

Rates = dict[str, tuple[tuple[int, float], ...]]

# Rows of the standard shapes; a multiple of attention's blocks.
TOKENS, LENGTH, VOCABULARY, CHUNKED_TOKENS = 2048, 512, 4096, 1024
WIDTHS, HEAD_WIDTHS, ELEMENTS = (128, 256, 512, 1024), (32, 64, 128), (1 << 18, 1 << 20, 1 << 22)
# Sides of Muon's matrices, and elements of a stack of them.
SIDES, STACKED = (128, 256, 512), 1 << 18
_RUNS = 3


class KernelProbe:
    """Rates of the stack's own kernels on a CPU, as `DeviceCeilings.kernel_rates` has them.

    A step takes the median of a few runs, for a prediction is of what happens and not of what is
    possible; of several steps the best counts, when nothing else ran.

    Args:
        threads: of PyTorch, and of the engine's loops.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._best: dict[str, dict[int, float]] = {}

    def steps(self) -> list[Callable[[], None]]:
        """A step for each kernel and size."""
        kinds = [*_training_kinds(), *engine_kinds(self._threads)]
        return [partial(self._measure, *kind) for kind in kinds]

    def result(self) -> Rates:
        """Work in a second by name and size, the sizes growing; each step was taken."""
        return {name: tuple(sorted(rates.items())) for name, rates in self._best.items()}

    def _measure(self, names: tuple[str, ...], size: int, measure: Measure) -> None:
        with torch_threads(self._threads):
            for name, rate in zip(names, measure(), strict=True):
                rates = self._best.setdefault(name, {})
                rates[size] = max(rate, rates.get(size, 0.0))


def attention_flops(rows: int, heads: int, length: int, width: int) -> int:
    """FLOPs of the forward products as they are made: blocks of queries over the keys they see."""
    scores = sum(
        min(BLOCK, stop) * stop for stop in range(length, 0, -BLOCK)
    )  # as `kernels.attention.with_numba._blocks` cuts them
    return 4 * rows * heads * width * scores


def muon_flops(rows: int, columns: int, iterations: int, block: int = 0) -> float:
    """FLOPs that make one matrix orthogonal, as `newton_schulz.gram_orthogonalize` does.

    Args:
        block: `OptimizerSettings.muon_block`.
    """
    side, long = min(rows, columns), max(rows, columns)
    short = muon_side(side, block)
    ratio = long / short
    cubes = iterations * (2 * ratio + 1)
    if ratio >= 2 and iterations >= 2:
        cubes = 2 * ratio + 4 * iterations - 3
    return 2.0 * (side // short) * short**3 * cubes


def muon_side(side: int, block: int) -> int:
    """Rows of what is made orthogonal at a time: the largest part of the side within the block."""
    return max((n for n in range(1, block + 1) if side % n == 0), default=side)


# --------------------------------------------------------------------------- training


def _training_kinds() -> Iterator[Kind]:
    for width in WIDTHS:
        yield ("product",), width, _product(width)
    for width in HEAD_WIDTHS:
        yield _both("attention"), width, _attention(width)
    for width in WIDTHS:
        yield ("cross-entropy",), width, _cross_entropy(width)
    for side in SIDES:
        yield ("muon",), side, _muon(side)
    for elements in ELEMENTS:
        x = torch.randn(elements // LENGTH, LENGTH)
        weight, pairs = torch.ones(LENGTH), torch.randn(elements // LENGTH, 2 * LENGTH)
        norm, gate = _differentiated(rms_norm, x, weight), _differentiated(swiglu, pairs)
        yield _both("norm"), elements, _per(elements, norm)
        yield _both("swiglu"), elements, _per(elements, gate)
        yield _both("rotation"), elements, _per(elements, _rotation(elements))
        yield ("addition",), elements, _addition(x)
        yield ("adamw",), elements, _adamw(elements)


def _both(name: str) -> tuple[str, str]:
    return f"{name} forward", f"{name} backward"


def _product(width: int) -> Measure:
    def measure() -> tuple[float, ...]:
        x, w, g = torch.randn(TOKENS, width), torch.randn(2 * width, width), None
        g = torch.randn(TOKENS, 2 * width)
        seconds = seconds_of(lambda: (x @ w.T, g @ w, g.T @ x))
        return (12 * TOKENS * width * width / seconds,)

    return measure


def _attention(width: int) -> Measure:
    def measure() -> tuple[float, ...]:
        rows, heads = TOKENS // LENGTH, 256 // width
        q, k, v = (torch.randn(rows, heads, LENGTH, width) for _ in range(3))
        forward, backward = _differentiated(attention, q, k, v)()
        flops = attention_flops(rows, heads, LENGTH, width)
        # Five products of the same sizes, where the forward pass has two.
        return flops / forward, 2.5 * flops / backward

    return measure


def _cross_entropy(width: int) -> Measure:
    def measure() -> tuple[float, ...]:
        hidden = torch.randn(CHUNKED_TOKENS, width, requires_grad=True)
        weight = torch.randn(VOCABULARY, width, requires_grad=True)
        targets = torch.arange(CHUNKED_TOKENS) % VOCABULARY
        # The gradients are made in the forward pass.
        seconds = seconds_of(lambda: chunked_cross_entropy(hidden, weight, targets))
        return (6 * CHUNKED_TOKENS * VOCABULARY * width / seconds,)

    return measure


def _rotation(elements: int) -> Callable[[], tuple[float, float]]:
    width, length = 64, min(LENGTH, elements // 512)
    heads = 512 // width
    rows = elements // (length * heads * width)
    x = torch.randn(rows, length, heads, width).transpose(1, 2)
    cos, sin = (a.float() for a in rotary_angles(torch.arange(length), width, 10_000.0))
    return _differentiated(lambda x: rotate_interleaved(x, cos, sin), x)


def _addition(x: Tensor) -> Measure:
    return lambda: (x.numel() / seconds_of(lambda: x + x),)


def _adamw(elements: int) -> Measure:
    def measure() -> tuple[float, ...]:
        parameters, gradients, firsts, seconds = ([torch.zeros(elements)] for _ in range(4))
        numbers = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8}

        def update() -> None:
            adamw(parameters, gradients, firsts, seconds, step=1, weight_decay=0.1, **numbers)

        return (elements / seconds_of(update),)

    return measure


def _muon(side: int) -> Measure:
    def measure() -> tuple[float, ...]:
        count, steps = max(1, STACKED // side**2), 5
        stack, coefficients = torch.randn(count, side, side), [JORDAN] * steps
        seconds = seconds_of(lambda: gram_orthogonalize(stack, coefficients))
        return (count * muon_flops(side, side, steps) / seconds,)

    return measure


def _differentiated(
    function: Callable[..., Tensor], *inputs: Tensor
) -> Callable[[], tuple[float, float]]:
    """Seconds of the forward and of the backward pass of a function."""

    def measure() -> tuple[float, float]:
        leaves = [x.detach().requires_grad_() for x in inputs]
        cotangent = torch.randn_like(function(*leaves))
        forward, backward = [], []
        for _ in range(_RUNS + 1):
            began = time.perf_counter()
            output = function(*leaves)
            between = time.perf_counter()
            torch.autograd.grad(output, leaves, cotangent)
            backward.append(time.perf_counter() - between)
            forward.append(between - began)
        return statistics.median(forward[1:]), statistics.median(backward[1:])

    return measure


def _per(work: int, seconds: Callable[[], tuple[float, float]]) -> Measure:
    return lambda: tuple(work / each for each in seconds())
