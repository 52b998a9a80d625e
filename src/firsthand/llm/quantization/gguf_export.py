"""A model as a GGUF file, which llama.cpp runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.hugging_face import ExchangeError
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.quantization.gguf_layout import (
    TYPES,
    Shape,
    architecture_of,
    gguf_package,
    tensor_shapes,
    to_tensors,
)
from firsthand.llm.quantization.gguf_tokenizer import describe_tokenizer
from firsthand.llm.tokenizer import Tokenizer

BLOCK = 32
"""Values of a row that share a scale in Q8_0."""


def save_gguf(
    model: Transformer,
    path: Path,
    tokenizer: Tokenizer | None = None,
    *,
    kind: str = "f16",
    name: str = "",
) -> None:
    """Write a model as llama.cpp reads it; an existing file is replaced once the new one is whole.

    Args:
        model: its config must be one that llama.cpp has (`gguf_layout.architecture_of`).
        path: of the file; its folder must exist.
        tokenizer: None writes a model that only takes and gives ids.
        kind: of the matrices, a key of TYPES; norms and biases are float32. q8_0 is a float16
            scale for each 32 values of a row, which are int8.
        name: general.name; the file's stem if empty.
    Raises:
        ExchangeError: no such architecture or kind, rows that q8_0 cannot divide, a weight that is
            not finite or too large for the kind, a tokenizer that GGUF cannot hold, or the package
            gguf is missing.
        OSError: the file cannot be written.
    """
    if kind not in TYPES:
        raise ExchangeError(f"there is no type {kind!r} here; there are {', '.join(TYPES)}")
    config = model.config
    architecture = architecture_of(config)
    shapes = tensor_shapes(config)
    if kind == "q8_0":
        _require_blocks(config)
    gguf = gguf_package()
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    writer = gguf.GGUFWriter(draft, architecture.name)
    try:
        _describe(writer, config, kind, name or path.stem)
        if tokenizer is None:
            writer.add_tokenizer_model("no_vocab")
        else:
            describe_tokenizer(writer, tokenizer, config.vocab_size)
        for tensor_name, shape in shapes.items():
            _announce(writer, tensor_name, shape, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        tensors = to_tensors(config, model.state_dict(), architecture.pairing)
        for tensor_name in shapes:
            writer.write_tensor_data(_encoded(tensors.pop(tensor_name), tensor_name, kind))
        writer.close()
        draft.replace(path)
    finally:
        writer.close()
        draft.unlink(missing_ok=True)


def _describe(writer: Any, config: ModelConfig, kind: str, name: str) -> None:
    """The keys of the shape."""
    gguf = gguf_package()
    file_types = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16"}
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[file_types.get(kind, "MOSTLY_Q8_0")])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.hidden_width)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_width)
    writer.add_value_length(config.head_width)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_width)
    writer.add_rope_freq_base(config.rope_base)


def _require_blocks(config: ModelConfig) -> None:
    """Each matrix has rows of one of these widths."""
    widths = {
        "d_model": config.d_model,
        "n_heads · d_head": config.qkv_rows[0],
        "d_ff": config.hidden_width,
    }
    odd = [f"{name} {width}" for name, width in widths.items() if width % BLOCK]
    if odd:
        raise ExchangeError(
            f"q8_0 divides rows into blocks of {BLOCK} values, and no multiple of {BLOCK} is "
            f"{', '.join(odd)}; f16 takes any width"
        )


def _announce(writer: Any, name: str, shape: Shape, kind: str) -> None:
    gguf = gguf_package()
    stored = gguf.GGMLQuantizationType[TYPES[kind if len(shape) > 1 else "f32"]]
    values, size = gguf.GGML_QUANT_SIZES[stored]
    count = int(np.prod(shape)) // values * size
    writer.add_tensor_info(name, shape, np.dtype(np.float32), count, raw_dtype=stored)


def _encoded(tensor: Tensor, name: str, kind: str) -> NDArray[Any]:
    """The tensor as the file holds it: matrices in the type asked for, vectors in float32."""
    gguf = gguf_package()
    kind = kind if tensor.ndim > 1 else "f32"
    values = np.ascontiguousarray(tensor.detach().float().cpu().numpy())
    if not np.isfinite(values).all():
        raise ExchangeError(f"{name} has weights that are not finite; nothing was written")
    # Of BF16 too the largest float32 values are beyond: they would round to infinity.
    limits = {
        "f16": float(np.finfo(np.float16).max),
        "bf16": float.fromhex("0x1.fep127"),
        "q8_0": 127 * float(np.finfo(np.float16).max),
    }
    largest = float(np.abs(values).max())
    if largest > limits.get(kind, np.inf):
        raise ExchangeError(
            f"{name} has a weight of magnitude {largest:.3g}, and {kind} ends at "
            f"{limits[kind]:.3g}; f32 holds it"
        )
    encoded: NDArray[Any] = gguf.quants.quantize(values, gguf.GGMLQuantizationType[TYPES[kind]])
    return encoded
