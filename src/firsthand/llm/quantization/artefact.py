"""A quantized model as a value and as a folder: config.json, weights.safetensors, tokenizer.json.

    config.json           format, version, model, quantization, record; size and CRC-32 of the
                          weights, and its own CRC-32 over all of this
    weights.safetensors   each matrix as int8 by its name in `Transformer.state_dict`, its scales
                          and zero points behind it (NAME.scales, NAME.zeros); all else float32
    tokenizer.json        as `Tokenizer.save` writes it

The folder is written under another name and renamed last. NumPy alone: an engine that starts from
it does not wait for PyTorch.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from firsthand.llm.data.files import crc32_of, damage_of, sync_file, sync_folder
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.settings import SettingsError, build, nearest
from firsthand.llm.quantization.errors import QuantizationError
from firsthand.llm.quantization.schemes import Floats, QuantizedMatrix, require_finite
from firsthand.llm.quantization.settings import QuantizationSettings
from firsthand.llm.quantization.shapes import matrix_shapes, vector_shapes
from firsthand.llm.tokenizer import Tokenizer

Record = dict[str, Any]

CONFIG, WEIGHTS, TOKENIZER = "config.json", "weights.safetensors", "tokenizer.json"
FORMAT, VERSION = "firsthand-quantized", 1
SCALES, ZEROS = ".scales", ".zeros"
_FILES = {CONFIG, WEIGHTS, TOKENIZER}
_KEYS = {"format", "version", "model", "quantization", "record", "weights", "crc32"}
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class QuantizedModel:
    """Weights in 8 bits with all that is needed to run them.

    Attributes:
        config: the shape of the model.
        settings: how it was quantized and how it runs.
        matrices: by their names in the Transformer's state dict, as `shapes.matrix_shapes` lists
            them; a tied output reads the embedding's.
        vectors: every other parameter.
        record: where it came from, the table of errors, bits per byte and bytes before and
            after; what JSON can hold.
    """

    config: ModelConfig
    settings: QuantizationSettings
    matrices: dict[str, QuantizedMatrix]
    vectors: dict[str, Floats]
    record: Record = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights, scales and zero points."""
        matrices = sum(matrix.nbytes for matrix in self.matrices.values())
        return matrices + sum(vector.nbytes for vector in self.vectors.values())

    def noted(self, **changes: Any) -> QuantizedModel:
        """The same with more keys in its record."""
        return replace(self, record={**self.record, **changes})


def is_quantized(folder: Path) -> bool:
    """Whether the folder's config says that it holds a quantized model, whole or not."""
    try:
        record = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("format") == FORMAT


def save_quantized(folder: Path, quantized: QuantizedModel, tokenizer: Tokenizer) -> None:
    """Write the folder; it is whole or not there.

    Args:
        folder: missing, empty, or with a quantized model, which is replaced.
        quantized: its record is what JSON can hold, without NaN.
        tokenizer: of the model.
    Raises:
        QuantizationError: the folder holds something else, or cannot be written.
        ValueError, TypeError: the record is not JSON.
    """
    require_free(folder)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "model": quantized.config.to_record(),
        "quantization": quantized.settings.to_record(),
        "record": {**quantized.record, "tokenizer": tokenizer.hash},
    }
    _canonical(content)
    partial = folder.with_name(f".{folder.name}.partial")
    aside = folder.with_name(f".{folder.name}.replaced")
    try:
        if aside.exists() and not folder.exists():
            os.rename(aside, folder)  # a replacement was cut off between its two renames
        for leftover in (partial, aside):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(_tensors(quantized), partial / WEIGHTS, metadata={"format": FORMAT})
        os.chmod(partial / WEIGHTS, 0o644)  # safetensors makes files that only their owner reads
        tokenizer.save(partial / TOKENIZER)
        size, checksum = (partial / WEIGHTS).stat().st_size, crc32_of(partial / WEIGHTS)
        content["weights"] = {"file": WEIGHTS, "bytes": size, "crc32": checksum}
        content["crc32"] = f"{zlib.crc32(_canonical(content)):08x}"
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        (partial / CONFIG).write_text(text, encoding="utf-8")
        for name in _FILES:
            sync_file(partial / name)
        if folder.exists():
            os.rename(folder, aside)
        os.rename(partial, folder)
        sync_folder(folder.parent)
        shutil.rmtree(aside, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        if aside.exists() and not folder.exists():
            os.rename(aside, folder)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise QuantizationError(f"{folder}: cannot be written: {reason}") from error


def require_free(folder: Path) -> None:
    """Nothing, or an error before hours of work are spent for a folder that cannot be written.

    Raises:
        QuantizationError: it holds something other than a quantized model.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise QuantizationError(f"{folder}: this is a file; name a folder")
    others = sorted(path.name for path in folder.iterdir() if path.name not in _FILES)
    if others or (any(folder.iterdir()) and not is_quantized(folder)):
        raise QuantizationError(
            f"{folder}: holds something else ({', '.join(others[:_SHOWN]) or CONFIG}); "
            "name a new folder"
        )


def load_quantized(folder: Path, *, verify: bool = True) -> QuantizedModel:
    """Read a folder that `save_quantized` wrote, checking all of it.

    Args:
        folder: with the three files.
        verify: read the weights once against their checksum (about 1 GB/s), and look at every
            number.
    Raises:
        QuantizationError: a file is missing, cut short, damaged or of another version; a tensor
            is missing, unknown, or of another shape or type; a number is not finite, or a scale
            negative. Names the file and the tensor.
    """
    content = _read_config(folder)
    path = folder / CONFIG
    try:
        config = build(ModelConfig, _table(content, "model", path), "model")
        settings = build(
            QuantizationSettings, _table(content, "quantization", path), "quantization"
        )
    except SettingsError as error:
        raise QuantizationError(f"{path}: {error}") from error
    weights = folder / WEIGHTS
    _require_whole(weights, _table(content, "weights", path), verify, path)
    return _read_weights(weights, config, settings, _table(content, "record", path), verify=verify)


def load_tokenizer(folder: Path, quantized: QuantizedModel) -> Tokenizer:
    """The tokenizer beside the weights.

    Raises:
        TokenizerError: the file cannot be used.
        QuantizationError: it is missing, or not the one that the folder was saved with.
    """
    path = folder / TOKENIZER
    if not path.exists():
        raise QuantizationError(f"{path}: missing")
    tokenizer = Tokenizer.load(path)
    expected = quantized.record.get("tokenizer")
    if expected is not None and tokenizer.hash != expected:
        raise QuantizationError(
            f"{path}: another tokenizer ({tokenizer.hash[:12]}) than the model's "
            f"({str(expected)[:12]})"
        )
    return tokenizer


def _tensors(quantized: QuantizedModel) -> dict[str, NDArray[Any]]:
    tensors: dict[str, NDArray[Any]] = {}
    for name, matrix in quantized.matrices.items():
        tensors[name] = np.ascontiguousarray(matrix.values)
        tensors[name + SCALES] = np.ascontiguousarray(matrix.scales)
        if matrix.zeros is not None:
            tensors[name + ZEROS] = np.ascontiguousarray(matrix.zeros)
    return tensors | {n: np.ascontiguousarray(vector) for n, vector in quantized.vectors.items()}


def _expected(
    config: ModelConfig, settings: QuantizationSettings
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of each tensor in the file."""
    scheme = settings.scheme
    expected: dict[str, tuple[tuple[int, ...], str]] = {}
    for name, (rows, columns) in matrix_shapes(config).items():
        size = scheme.group_size or columns
        if columns % size:
            raise QuantizationError(f"groups of {size} do not divide the {columns} of {name}")
        expected[name] = ((rows, columns), "I8")
        expected[name + SCALES] = ((rows, columns // size), "F32")
        if scheme.asymmetric:
            expected[name + ZEROS] = ((rows, columns // size), "I8")
    return expected | {name: (shape, "F32") for name, shape in vector_shapes(config).items()}


def _read_weights(
    path: Path,
    config: ModelConfig,
    settings: QuantizationSettings,
    record: Record,
    *,
    verify: bool,
) -> QuantizedModel:
    try:
        expected = _expected(config, settings)
    except QuantizationError as error:
        raise QuantizationError(f"{path.parent / CONFIG}: {error}") from error
    try:
        with safe_open(path, framework="numpy") as file:
            _require_tensors(path, file, expected)
            read = {name: file.get_tensor(name) for name in expected}
    except (OSError, SafetensorError) as error:
        raise QuantizationError(f"{path}: {error}") from error
    matrices = {}
    for name, (_, columns) in matrix_shapes(config).items():
        size = settings.scheme.group_size or columns
        matrix = QuantizedMatrix(read[name], read[name + SCALES], read.get(name + ZEROS), size)
        if verify:
            _require_sound(matrix, f"{path}: {name}")
        matrices[name] = matrix
    vectors = {name: read[name] for name in vector_shapes(config)}
    for name, vector in vectors.items() if verify else ():
        require_finite(vector, f"{path}: {name}")
    return QuantizedModel(
        config=config, settings=settings, matrices=matrices, vectors=vectors, record=record
    )


def _require_tensors(
    path: Path, file: Any, expected: Mapping[str, tuple[tuple[int, ...], str]]
) -> None:
    names = set(file.keys())
    problems = [f"no {name}" for name in expected if name not in names]
    for name in sorted(names - expected.keys()):
        close = nearest(name, expected)
        hint = f"; the nearest is {close}" if close and close not in names else ""
        problems.append(f"an unknown {name}{hint}")
    for name, (shape, kind) in expected.items():
        if name not in names:
            continue
        found = file.get_slice(name)
        if tuple(found.get_shape()) != shape:
            problems.append(f"{name} is {tuple(found.get_shape())}, not {shape}")
        elif found.get_dtype() != kind:
            problems.append(f"{name} is of the type {found.get_dtype()}, not {kind}")
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise QuantizationError(f"{path}: {'; '.join(problems[:_SHOWN])}{more}")


def _require_sound(matrix: QuantizedMatrix, name: str) -> None:
    require_finite(matrix.scales, f"{name}{SCALES}")
    if (matrix.scales < 0).any():
        raise QuantizationError(f"{name}{SCALES}: a scale is negative: {matrix.scales.min()}")
    # A 32-bit sum over such rows holds 127 times the activations and no more.
    if matrix.zeros is None and matrix.values.min() < -127:
        raise QuantizationError(f"{name}: holds -128; a symmetric grid ends at -127")


def _read_config(folder: Path) -> Record:
    path = folder / CONFIG
    if not folder.is_dir():
        raise QuantizationError(f"{folder}: there is no such folder")
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise QuantizationError(f"{path}: missing") from error
    except OSError as error:
        raise QuantizationError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise QuantizationError(f"{path}: damaged, this is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise QuantizationError(f"{path}: not of a quantized model, its format is not {FORMAT!r}")
    if content.get("version") != VERSION:
        raise QuantizationError(
            f"{path}: version {content.get('version')}; this program reads version {VERSION}"
        )
    unknown = sorted(content.keys() - _KEYS)
    missing = sorted(_KEYS - content.keys())
    if unknown or missing:
        what = [f"an unknown key {name}" for name in unknown] + [f"no {n}" for n in missing]
        raise QuantizationError(f"{path}: {'; '.join(what)}")
    checksum = content.pop("crc32")
    if checksum != f"{zlib.crc32(_canonical(content)):08x}":
        raise QuantizationError(f"{path}: damaged, it differs from its checksum")
    return content


def _table(content: Record, name: str, path: Path) -> Record:
    table = content[name]
    if not isinstance(table, dict):
        raise QuantizationError(f"{path}: {name} is a table; not {table!r}")
    return table


def _require_whole(path: Path, about: Record, verify: bool, config: Path) -> None:
    if about.keys() != {"file", "bytes", "crc32"} or about["file"] != path.name:
        raise QuantizationError(f"{config}: its table of the weights is not {path.name}'s")
    if wrong := damage_of(path, about["bytes"], str(about["crc32"]) if verify else None):
        raise QuantizationError(f"{path}: {wrong}")


def _canonical(content: Mapping[str, Any]) -> bytes:
    """The same bytes for the same content, however its file is laid out."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
