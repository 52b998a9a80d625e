"""What a GGUF file holds of a model: its architectures, the names and shapes of their tensors.

Two of llama.cpp's architectures compute what our decoder does: "llama", which turns neighbouring
features by RoPE, and "qwen3", which norms queries and keys and turns features half a head apart.
Queries, keys and values, and gate and up, are one matrix each here and several there.
Source: the GGUF specification in ggml's docs/gguf.md; llama.cpp's src/models/llama.cpp and
qwen3.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from firsthand.llm.model.config import ModelConfig, Pairing
from firsthand.llm.model.hugging_face import ExchangeError
from firsthand.llm.model.positions import half_order, interleaved_order

Weights = dict[str, Tensor]
Shape = tuple[int, ...]

TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
"""How the matrices of a file can be stored: our name, and that in the package gguf."""


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's architectures, as far as ours is concerned.

    Attributes:
        name: general.architecture.
        pairing: which features its RoPE turns together.
        qk_norm: whether queries and keys are normed in each head.
        bias: whether its linear layers may have biases.
    """

    name: str
    pairing: Pairing
    qk_norm: bool
    bias: bool


ARCHITECTURES = {
    "llama": Architecture("llama", "interleaved", qk_norm=False, bias=True),
    "qwen3": Architecture("qwen3", "half", qk_norm=True, bias=False),
}

# What both fix: any other value would be lost on the way.
_FIXED = {
    "positions": "rope",
    "norm": "rms",
    "norm_placement": "pre",
    "feed_forward": "swiglu",
    "window": 0,
    "neighbours": 0,
}


def gguf_package() -> ModuleType:
    """The package gguf.

    Raises:
        ExchangeError: it is not installed.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise ExchangeError(
            f"GGUF files need the package {error.name}; install it: pip install 'firsthand[gguf]'"
        ) from None
    return gguf


def architecture_of(config: ModelConfig) -> Architecture:
    """The architecture that computes the same function.

    Raises:
        ExchangeError: there is none; names each field.
    """
    odd = [f"{k} = {getattr(config, k)!r}" for k, v in _FIXED.items() if getattr(config, k) != v]
    found = ARCHITECTURES["qwen3" if config.qk_norm else "llama"]
    if config.bias and not found.bias:
        odd.append("bias = True beside qk_norm = True")
    if odd:
        raise ExchangeError(f"llama.cpp has no architecture with {', '.join(odd)}")
    return found


def tensor_shapes(config: ModelConfig) -> dict[str, Shape]:
    """The tensors of a file by name, rows first, in the order in which they are written."""
    d, inner, width = config.d_model, config.hidden_width, config.head_width
    q, k, v = config.qkv_rows
    matrices = {
        "attn_q": (q, d),
        "attn_k": (k, d),
        "attn_v": (v, d),
        "attn_output": (d, q),
        "ffn_gate": (inner, d),
        "ffn_up": (inner, d),
        "ffn_down": (d, inner),
    }
    vectors = {"attn_norm": (d,), "ffn_norm": (d,)}
    if config.qk_norm:
        vectors |= {"attn_q_norm": (width,), "attn_k_norm": (width,)}
    shapes: dict[str, Shape] = {"token_embd.weight": (config.vocab_size, d)}
    for layer in range(config.n_layers):
        prefix = f"blk.{layer}."
        shapes |= {f"{prefix}{name}.weight": shape for name, shape in vectors.items()}
        for name, (rows, columns) in matrices.items():
            shapes[f"{prefix}{name}.weight"] = (rows, columns)
            if config.bias:
                shapes[f"{prefix}{name}.bias"] = (rows,)
    shapes["output_norm.weight"] = (d,)
    if not config.tied:
        shapes["output.weight"] = (config.vocab_size, d)
    return shapes


def to_tensors(config: ModelConfig, own: Mapping[str, Tensor], pairing: Pairing) -> Weights:
    """A file's tensors from a model's weights; without a copy where rows keep their order.

    Args:
        config: of the model.
        own: its state.
        pairing: of RoPE in the file.
    """
    tensors = {"token_embd.weight": own["embedding.weight"]}
    tensors["output_norm.weight"] = own["final_norm.weight"]
    if not config.tied:
        tensors["output.weight"] = own["output.weight"]

    def turned(rows: Tensor) -> Tensor:
        return _reordered(rows, config.head_width, config.rope_pairing, pairing)

    for layer in range(config.n_layers):
        ours, theirs = f"blocks.{layer}.", f"blk.{layer}."
        for one, other in _SAME.items():
            tensors[f"{theirs}{other}.weight"] = own[f"{ours}{one}.weight"]
        for kind in _kinds(config):
            q, k, v = torch.split(own[f"{ours}attention.qkv.{kind}"], list(config.qkv_rows))
            tensors[f"{theirs}attn_q.{kind}"] = turned(q)
            tensors[f"{theirs}attn_k.{kind}"] = turned(k)
            tensors[f"{theirs}attn_v.{kind}"] = v
            gate, up = own[f"{ours}feed_forward.up.{kind}"].chunk(2)
            tensors[f"{theirs}ffn_gate.{kind}"] = gate
            tensors[f"{theirs}ffn_up.{kind}"] = up
            tensors[f"{theirs}attn_output.{kind}"] = own[f"{ours}attention.output.{kind}"]
            tensors[f"{theirs}ffn_down.{kind}"] = own[f"{ours}feed_forward.down.{kind}"]
        if config.qk_norm:
            for one, other in _HEAD_NORMS.items():
                tensors[f"{theirs}{other}.weight"] = turned(own[f"{ours}{one}.weight"])
    return tensors


def from_tensors(config: ModelConfig, tensors: Mapping[str, Tensor], pairing: Pairing) -> Weights:
    """A model's weights from a file's tensors, which have the names and shapes of
    `tensor_shapes`; the inverse of `to_tensors`.

    Args:
        config: of the model.
        tensors: of the file.
        pairing: of RoPE in the file.
    """
    weights = {"embedding.weight": tensors["token_embd.weight"]}
    weights["final_norm.weight"] = tensors["output_norm.weight"]
    if not config.tied:
        weights["output.weight"] = tensors["output.weight"]

    def turned(rows: Tensor) -> Tensor:
        return _reordered(rows, config.head_width, pairing, config.rope_pairing)

    for layer in range(config.n_layers):
        ours, theirs = f"blocks.{layer}.", f"blk.{layer}."
        for one, other in _SAME.items():
            weights[f"{ours}{one}.weight"] = tensors[f"{theirs}{other}.weight"]
        for kind in _kinds(config):
            q, k, v = (tensors[f"{theirs}attn_{name}.{kind}"] for name in "qkv")
            weights[f"{ours}attention.qkv.{kind}"] = torch.cat([turned(q), turned(k), v])
            gate, up = (tensors[f"{theirs}ffn_{name}.{kind}"] for name in ("gate", "up"))
            weights[f"{ours}feed_forward.up.{kind}"] = torch.cat([gate, up])
            weights[f"{ours}attention.output.{kind}"] = tensors[f"{theirs}attn_output.{kind}"]
            weights[f"{ours}feed_forward.down.{kind}"] = tensors[f"{theirs}ffn_down.{kind}"]
        if config.qk_norm:
            for one, other in _HEAD_NORMS.items():
                weights[f"{ours}{one}.weight"] = turned(tensors[f"{theirs}{other}.weight"])
    return weights


_SAME = {"attention_norm": "attn_norm", "feed_forward_norm": "ffn_norm"}
_HEAD_NORMS = {"attention.query_norm": "attn_q_norm", "attention.key_norm": "attn_k_norm"}


def _kinds(config: ModelConfig) -> tuple[str, ...]:
    return ("weight", "bias") if config.bias else ("weight",)


def _reordered(rows: Tensor, width: int, source: Pairing, target: Pairing) -> Tensor:
    """Each head's rows of a query or key matrix (or bias, or norm) in another pairing's order."""
    if source == target:
        return rows
    order = interleaved_order(width) if target == "interleaved" else half_order(width)
    heads = rows.unflatten(0, (-1, width))  # type: ignore[no-untyped-call]
    result: Tensor = heads[:, order].flatten(0, 1)
    return result
