"""A model from a GGUF file of llama.cpp's architectures "llama" and "qwen3"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from firsthand.llm.model.config import ModelConfig, Pairing
from firsthand.llm.model.hugging_face import ExchangeError
from firsthand.llm.model.parts import Parts
from firsthand.llm.model.settings import SettingsError
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.quantization.gguf_layout import (
    ARCHITECTURES,
    TYPES,
    Architecture,
    Shape,
    from_tensors,
    gguf_package,
    tensor_shapes,
)
from firsthand.llm.quantization.gguf_tokenizer import described_tokenizer
from firsthand.llm.tokenizer import Tokenizer, TokenizerError

Fields = dict[str, Any]

# Keys of an architecture that say nothing new, with the one value that they may have; None is any.
# A key that is neither here nor read would change the function, so it is an error.
_HARMLESS: dict[str, Any] = {
    "attention.causal": True,
    "expert_count": 0,
    "expert_used_count": 0,
    "rope.scale_linear": 1.0,
    "rope.scaling.type": "none",
    "tensor_data_layout": None,
    "vocab_size": None,
}


@dataclass(frozen=True)
class ImportedModel:
    """What a GGUF file holds.

    Attributes:
        model: its weights are float32.
        tokenizer: None if the file has none that is a byte-level BPE with a pattern of ours.
        no_tokenizer: why there is none.
    """

    model: Transformer
    tokenizer: Tokenizer | None
    no_tokenizer: str = ""


def load_gguf(path: Path, parts: Parts, *, pairing: Pairing = "interleaved") -> ImportedModel:
    """The model and the tokenizer of a file.

    Args:
        path: a GGUF file with tensors in F32, F16, BF16 or Q8_0.
        parts: the code of the model.
        pairing: of RoPE in the result; the function is the same.
    Raises:
        ExchangeError: no GGUF, truncated or damaged, another architecture or another type of
            tensors, a setting that is not ours, tensors that are missing, left over or of another
            shape, or values that are not finite; names each.
        OSError: the file cannot be read.
    """
    reader = _opened(path)
    fields = _fields(reader, path)
    architecture = _architecture(fields, path)
    shapes = {
        tensor.name: tuple(int(n) for n in reversed(tensor.shape)) for tensor in reader.tensors
    }
    try:
        config = _config(fields, architecture, shapes, pairing)
    except SettingsError as error:
        raise ExchangeError(f"{path}: {error}") from error
    _require_shapes(shapes, tensor_shapes(config), path)
    tensors = {tensor.name: _values(tensor, path) for tensor in reader.tensors}
    with torch.device("meta"):
        model = Transformer(config, parts)
    weights = from_tensors(config, tensors, architecture.pairing)
    model.load_state_dict(weights, assign=True)
    model.requires_grad_(True)
    try:
        tokenizer = described_tokenizer(fields, path)
    except TokenizerError as error:
        return ImportedModel(model, None, str(error))
    if tokenizer.vocabulary_size > config.vocab_size:
        raise ExchangeError(
            f"{path}: {tokenizer.vocabulary_size} tokens, but only {config.vocab_size} rows of the "
            "embedding"
        )
    return ImportedModel(model, tokenizer)


def _opened(path: Path) -> Any:
    """A reader whose every read lies within the file: by itself the package's runs on at its end,
    and counts to the end of a damaged length."""
    gguf = gguf_package()

    class Reader(gguf.GGUFReader):  # type: ignore[misc,name-defined]
        def _get(self, offset: Any, dtype: Any, count: Any = 1, *order: Any, **more: Any) -> Any:
            end = int(offset) + np.dtype(dtype).itemsize * int(count)
            if end > len(self.data):
                raise EOFError(f"it ends at byte {len(self.data)}, and byte {end} is called for")
            return super()._get(offset, dtype, count, *order, **more)

    try:
        reader = Reader(path)
    except EOFError as error:
        raise ExchangeError(f"{path}: truncated or damaged: {error}") from error
    except (ValueError, LookupError, TypeError, OverflowError, MemoryError) as error:
        raise ExchangeError(f"{path}: no GGUF file, or damaged: {error}") from error
    if reader.endianess != gguf.GGUFEndian.LITTLE:
        raise ExchangeError(f"{path}: a big-endian file; only little-endian ones can be read")
    return reader


def _fields(reader: Any, path: Path) -> Fields:
    try:
        return {key: field.contents() for key, field in reader.fields.items()}
    except ValueError as error:
        raise ExchangeError(f"{path}: damaged: {error}") from error


def _architecture(fields: Fields, path: Path) -> Architecture:
    name = fields.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ExchangeError(
            f"{path}: the architecture is {name!r}; {' and '.join(ARCHITECTURES)} can be read"
        )
    return ARCHITECTURES[name]


def _config(
    fields: Fields, architecture: Architecture, shapes: Mapping[str, Shape], pairing: Pairing
) -> ModelConfig:
    """The config that the keys and the names of the tensors describe.

    Raises:
        SettingsError: a key that is missing, of another kind or not ours.
    """
    prefix = f"{architecture.name}."
    own = {k.removeprefix(prefix): v for k, v in fields.items() if k.startswith(prefix)}

    def number(key: str, default: int | None = None) -> int:
        value = own.pop(key, default)
        if type(value) is not int or value < 1:
            state = "is missing" if value is None else f"is {value!r}, not one number of at least 1"
            raise SettingsError(f"{prefix}{key} {state}")
        return value

    def real(key: str, default: float | None = None) -> float:
        value = own.pop(key, default)
        if not isinstance(value, float) or not np.isfinite(value):
            state = "is missing" if value is None else f"is {value!r}, no finite number"
            raise SettingsError(f"{prefix}{key} {state}")
        return float(str(np.float32(value)))  # the shortest number that float32 stores so

    width, heads = number("embedding_length"), number("attention.head_count")
    d_head = number("attention.key_length", max(width // heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        if number(key, d_head) != d_head:
            raise SettingsError(f"{prefix}{key} is not the {d_head} features of a head's key")
    embedding = shapes.get("token_embd.weight", ())
    layers = number("block_count")
    blocks = {name.split(".")[1] for name in shapes if name.startswith("blk.")}
    if blocks != {str(layer) for layer in range(min(layers, len(blocks) + 1))}:
        raise SettingsError(f"{prefix}block_count is {layers}, but there are {len(blocks)} blocks")
    config = ModelConfig(
        vocab_size=embedding[0] if embedding else 0,
        context=number("context_length"),
        d_model=width,
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=number("attention.head_count_kv", heads),
        d_head=d_head,
        d_ff=number("feed_forward_length"),
        norm_eps=real("attention.layer_norm_rms_epsilon"),
        rope_base=real("rope.freq_base", 10_000.0),
        rope_pairing=pairing,
        qk_norm=architecture.qk_norm,
        tied="output.weight" not in shapes,
        bias=architecture.bias and any(name.endswith(".bias") for name in shapes),
    )
    for key, value in own.items():
        if key not in _HARMLESS or _HARMLESS[key] not in (None, value):
            raise SettingsError(f"{prefix}{key} = {value!r} is not supported")
    return config


def _require_shapes(found: Mapping[str, Shape], expected: Mapping[str, Shape], path: Path) -> None:
    """The tensors must be those of the config, each in its shape."""
    missing = [name for name in expected if name not in found]
    left = [name for name in found if name not in expected]
    wrong = [
        f"{name} is {found[name]}, not {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    for problem, names in (
        ("there is no tensor ", missing),
        ("tensors without a place in the model: ", left),
        ("", wrong),
    ):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise ExchangeError(f"{path}: {problem}{', '.join(names[:5])}{more}")


def _values(tensor: Any, path: Path) -> Tensor:
    """A tensor's values in float32, in memory of their own."""
    gguf = gguf_package()
    kind = tensor.tensor_type.name
    if kind not in TYPES.values():
        raise ExchangeError(
            f"{path}: {tensor.name} is {kind}; {', '.join(TYPES.values())} can be read"
        )
    with np.errstate(invalid="ignore", over="ignore"):
        values = np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        what = "a scale that is" if kind == "Q8_0" else "values that are"
        raise ExchangeError(f"{path}: {tensor.name} has {what} not finite ({kind})")
    return torch.from_numpy(values)
