"""The weights as the compiled step reads them: each kind of all layers in one array."""

from __future__ import annotations

import contextlib
import mmap
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.inference.errors import InferenceError
from firsthand.llm.kernels.int8_matmul.panels import padded
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.quantization.artefact import QuantizedModel
from firsthand.llm.quantization.schemes import QuantizedMatrix

AnyArray = NDArray[Any]

_LINE = 64
_HUGE_PAGE = 2**21

# What the step is written for: everything else runs on PyTorch.
_RUNS: dict[str, Any] = {
    "feed_forward": "swiglu",
    "norm": "rms",
    "norm_placement": "pre",
    "positions": "rope",
    "window": 0,
    "qk_norm": False,
    "neighbours": 0,
    "bias": False,
}


class Weights(NamedTuple):
    """int8 matrices with rows padded to a multiple of 64, a float32 scale for each row.

    Attributes:
        embedding, embedding_scales: (vocab, d_model), (vocab,).
        output, output_scales: the same arrays when the model is tied.
        qkv, qkv_scales: (layers, rows, d_model), (layers, rows): a head's rows follow each other,
            queries, then keys, then values. Query and key rows stand in the order in which RoPE
            turns feature i with i + width / 2.
        mix, mix_scales: (layers, d_model, heads · width): the product after attention.
        gate, up: (layers, d_ff, d_model).
        down: (layers, d_model, d_ff).
        attention_norms, feed_forward_norms: float32 (layers, d_model).
        final_norm: float32 (d_model,).
        cos, sin: float32 (capacity, width / 2).
    """

    embedding: AnyArray
    embedding_scales: AnyArray
    output: AnyArray
    output_scales: AnyArray
    qkv: AnyArray
    qkv_scales: AnyArray
    mix: AnyArray
    mix_scales: AnyArray
    gate: AnyArray
    gate_scales: AnyArray
    up: AnyArray
    up_scales: AnyArray
    down: AnyArray
    down_scales: AnyArray
    attention_norms: AnyArray
    feed_forward_norms: AnyArray
    final_norm: AnyArray
    cos: AnyArray
    sin: AnyArray


def reason_against(quantized: QuantizedModel) -> str:
    """Why the CPU engine cannot run the model, as the end of a sentence; "" if it can."""
    for name, value in _RUNS.items():
        found = getattr(quantized.config, name)
        if found != value:
            return f"it has {name} = {found!r}, and the CPU engine runs {value!r} alone"
    scheme = quantized.settings.scheme
    if scheme.asymmetric or scheme.weights == "group":
        return "its weights are asymmetric or in groups; the CPU engine takes one scale for a row"
    if quantized.settings.activations != "dynamic":
        return "its activations are not quantized; the CPU engine multiplies integers"
    if quantized.settings.cache != "int8":
        return f"its cache is {quantized.settings.cache}; the CPU engine keeps int8"
    return ""


def packed(quantized: QuantizedModel, capacity: int) -> Weights:
    """The weights in the step's layout: one copy, read in order while a token is computed.

    Args:
        capacity: positions for which RoPE's angles are needed.
    Raises:
        InferenceError: a model that the step is not written for.
    """
    reason = reason_against(quantized)
    if reason:
        raise InferenceError(f"the CPU engine cannot run this model: {reason}")
    config, matrices, vectors = quantized.config, quantized.matrices, quantized.vectors
    layers = range(config.n_layers)

    def each(name: str) -> list[QuantizedMatrix]:
        return [matrices[f"blocks.{layer}.{name}.weight"] for layer in layers]

    ups = each("feed_forward.up")
    half = config.hidden_width
    embedding = _stacked([matrices["embedding.weight"]])
    output = embedding if config.tied else _stacked([matrices["output.weight"]])
    qkv = _stacked(each("attention.qkv"), _rope_order(config))
    mix, down = _stacked(each("attention.output")), _stacked(each("feed_forward.down"))
    gate = _stacked(ups, np.arange(half))
    up = _stacked(ups, np.arange(half, 2 * half))
    cos, sin = rotary_tables(capacity, config.head_width, config.rope_base)
    return Weights(
        embedding[0][0],
        embedding[1][0],
        output[0][0],
        output[1][0],
        *(*qkv, *mix, *gate, *up, *down),
        _norms(vectors, "attention_norm", config.n_layers),
        _norms(vectors, "feed_forward_norm", config.n_layers),
        np.ascontiguousarray(vectors["final_norm.weight"]),
        cos,
        sin,
    )


def rotary_tables(capacity: int, width: int, base: float) -> tuple[AnyArray, AnyArray]:
    """cos and sin of position · base^(-2i / width), computed in float64, (capacity, width / 2).

    Source: Su et al. 2021, section 3.2.2.
    """
    rates = base ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    angles = np.arange(capacity, dtype=np.float64)[:, None] * rates
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _rope_order(config: ModelConfig) -> AnyArray:
    """The rows of the fused projection, so that a head's pairs lie half a head apart.

    A score is a sum over a head's features, so their order does not matter as long as queries and
    keys share it.
    """
    width = config.head_width
    pairs = np.arange(width)
    if config.rope_pairing == "interleaved":
        pairs = np.concatenate([pairs[0::2], pairs[1::2]])
    turned = config.n_heads + config.kv_heads
    rows = [head * width + pairs for head in range(turned)]
    values = np.arange(turned * width, (turned + config.kv_heads) * width)
    return np.concatenate([*rows, values])


def _stacked(
    matrices: list[QuantizedMatrix], rows: AnyArray | None = None
) -> tuple[AnyArray, AnyArray]:
    """(layers, rows, padded width) and (layers, rows), on whole cache lines."""
    picked = slice(None) if rows is None else rows
    first = matrices[0].values[picked]
    values = aligned((len(matrices), len(first), padded(first.shape[1])), np.int8)
    scales = aligned((len(matrices), len(first)), np.float32)
    for layer, matrix in enumerate(matrices):
        values[layer, :, : first.shape[1]] = matrix.values[picked]
        scales[layer] = matrix.scales[picked, 0]
    return values, scales


def _norms(vectors: dict[str, NDArray[np.float32]], name: str, layers: int) -> AnyArray:
    return np.stack([vectors[f"blocks.{layer}.{name}.weight"] for layer in range(layers)])


def aligned(shape: tuple[int, ...], kind: Any) -> AnyArray:
    """Zeros that begin a cache line, so that a vector load does not touch two.

    Large ones lie in huge pages where the system has them: it looks up an address for each page,
    and what reads ahead stops at the end of one.
    """
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    if size >= _HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        memory, step = _huge_pages(size + _HUGE_PAGE), _HUGE_PAGE
    else:
        memory, step = np.zeros(size + _LINE, np.uint8), _LINE
    start = -memory.ctypes.data % step
    found: AnyArray = memory[start : start + size].view(kind).reshape(shape)
    return found


def _huge_pages(size: int) -> AnyArray:
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # A kernel without huge pages refuses, and its own pages do.
    with contextlib.suppress(OSError):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8)
