"""A quantized folder: what comes back, and what a damaged or hostile one is told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from firsthand.llm.model.transformer import Transformer
from firsthand.llm.quantization import artefact
from firsthand.llm.quantization.artefact import (
    QuantizedModel,
    is_quantized,
    load_quantized,
    load_tokenizer,
    save_quantized,
)
from firsthand.llm.quantization.errors import QuantizationError
from firsthand.llm.quantization.quantizing import quantize
from firsthand.llm.quantization.schemes import Scheme
from firsthand.llm.quantization.settings import QuantizationSettings
from firsthand.llm.tokenizer import Tokenizer

MakeModel = Callable[..., Transformer]
Draw = Callable[[int, int], NDArray[np.int64]]
TOKENIZER = Tokenizer([], special_tokens=("<|endoftext|>",))
QKV = "blocks.0.attention.qkv.weight"


def _quantized(model: Transformer, tokens: NDArray[np.int64], **scheme: Any) -> QuantizedModel:
    return quantize(model, QuantizationSettings(scheme=Scheme(**scheme)), tokens)


@pytest.fixture
def folder(tmp_path: Path, model_of: MakeModel, tokens_of: Draw) -> Path:
    save_quantized(tmp_path / "int8", _quantized(model_of("mqa-bias"), tokens_of(2, 20)), TOKENIZER)
    return tmp_path / "int8"


@pytest.mark.parametrize(
    "scheme",
    [
        {},
        {"weights": "tensor", "percentile": 99.5},
        {"weights": "group", "group_size": 12, "asymmetric": True},
    ],
)
def test_a_model_comes_back_as_it_was(
    scheme: dict[str, Any], variant: str, tmp_path: Path, model_of: MakeModel, tokens_of: Draw
) -> None:
    quantized = _quantized(model_of(variant), tokens_of(2, 20), **scheme)
    save_quantized(tmp_path / "deep" / "int8", quantized, TOKENIZER)
    found = load_quantized(tmp_path / "deep" / "int8")
    assert found.config == quantized.config
    assert found.settings == quantized.settings
    assert found.record == {**quantized.record, "tokenizer": TOKENIZER.hash}
    assert found.nbytes == quantized.nbytes
    assert list(found.matrices) == list(quantized.matrices)
    for name, matrix in quantized.matrices.items():
        again = found.matrices[name]
        np.testing.assert_array_equal(again.values, matrix.values)
        np.testing.assert_array_equal(again.scales, matrix.scales)
        assert (again.zeros is None) == (matrix.zeros is None) == (not scheme.get("asymmetric"))
        if matrix.zeros is not None and again.zeros is not None:
            np.testing.assert_array_equal(again.zeros, matrix.zeros)
        assert again.group_size == matrix.group_size
    assert found.vectors.keys() == quantized.vectors.keys()
    for name, vector in quantized.vectors.items():
        np.testing.assert_array_equal(found.vectors[name], vector)
    assert load_tokenizer(tmp_path / "deep" / "int8", found).hash == TOKENIZER.hash
    assert os.listdir(tmp_path / "deep") == ["int8"]


def test_reading_it_needs_no_pytorch(folder: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from firsthand.llm.quantization import schemes, artefact\n"
        f"found = artefact.load_quantized(Path({str(folder)!r}))\n"
        "found.matrices['embedding.weight'].dequantized()\n"
        f"artefact.load_tokenizer(Path({str(folder)!r}), found)\n"
        "print([m for m in ('torch', 'numba', 'jaxtyping') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_saving_again_replaces(folder: Path, model_of: MakeModel, tokens_of: Draw) -> None:
    other = _quantized(model_of("plain"), tokens_of(2, 20), weights="tensor")
    save_quantized(folder, other, TOKENIZER)
    assert load_quantized(folder).settings.scheme.weights == "tensor"
    assert os.listdir(folder.parent) == ["int8"]


def test_other_folders_are_left_alone(
    folder: Path, tmp_path: Path, model_of: MakeModel, tokens_of: Draw
) -> None:
    quantized = load_quantized(folder)
    busy, file, foreign = tmp_path / "busy", tmp_path / "file", tmp_path / "foreign"
    busy.mkdir()
    (busy / "notes.txt").write_text("mine")
    file.write_text("mine")
    foreign.mkdir()
    (foreign / "config.json").write_text('{"model_type": "llama"}')
    for place, message in (
        (busy, r"busy: holds something else \(notes.txt\)"),
        (file, "file: this is a file"),
        (foreign, r"foreign: holds something else \(config.json\)"),
    ):
        with pytest.raises(QuantizationError, match=message):
            save_quantized(place, quantized, TOKENIZER)
    assert (busy / "notes.txt").read_text() == "mine"
    assert json.loads((foreign / "config.json").read_text()) == {"model_type": "llama"}


def test_cut_off_while_it_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, model_of: MakeModel, tokens_of: Draw
) -> None:
    """A kill leaves the old folder; a full disk leaves it too, and says so."""

    class Killed(BaseException):
        pass

    other = _quantized(model_of("plain"), tokens_of(2, 20), weights="tensor")

    def killed(*arguments: Any, **options: Any) -> None:
        save_file(*arguments, **options)
        raise Killed

    monkeypatch.setattr(artefact, "save_file", killed)
    with pytest.raises(Killed):
        save_quantized(folder, other, TOKENIZER)
    assert load_quantized(folder).settings.scheme.weights == "channel"

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artefact, "save_file", full)
    with pytest.raises(QuantizationError, match="int8: cannot be written: No space left"):
        save_quantized(folder, other, TOKENIZER)
    assert load_quantized(folder).settings.scheme.weights == "channel"
    monkeypatch.undo()
    save_quantized(folder, other, TOKENIZER)
    assert load_quantized(folder).settings.scheme.weights == "tensor"
    assert os.listdir(folder.parent) == ["int8"]


def test_cut_off_between_the_two_renames(
    folder: Path, model_of: MakeModel, tokens_of: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old model stands aside under another name; the next save, failing, puts it back."""
    quantized = load_quantized(folder)
    os.rename(folder, folder.with_name(".int8.replaced"))

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artefact, "save_file", full)
    with pytest.raises(QuantizationError, match="No space"):
        save_quantized(folder, quantized, TOKENIZER)
    assert load_quantized(folder).config == quantized.config


def test_a_record_that_json_cannot_hold_changes_nothing(folder: Path) -> None:
    quantized = load_quantized(folder)
    with pytest.raises(ValueError, match="JSON"):
        save_quantized(folder, quantized.noted(loss=float("nan")), TOKENIZER)
    assert load_quantized(folder).record == quantized.record


# ---------------------------------------------------------------------- damaged files


def _error(folder: Path, **options: Any) -> str:
    with pytest.raises(QuantizationError) as caught:
        load_quantized(folder, **options)
    return str(caught.value)


def test_every_length_of_the_weights_but_the_right_one(folder: Path) -> None:
    path = folder / "weights.safetensors"
    data = path.read_bytes()
    for size in (0, 1, 7, 8, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        assert f"{path}: cut short, {size:,} bytes instead of {len(data):,}" in _error(folder)
    path.write_bytes(data + b"\0")
    assert "too long" in _error(folder)
    path.unlink()
    assert _error(folder) == f"{path}: missing"


def test_a_flipped_bit_anywhere(folder: Path) -> None:
    for name in ("weights.safetensors", "config.json"):
        path = folder / name
        data = path.read_bytes()
        for place in np.random.default_rng(0).integers(0, len(data), 60).tolist():
            if name == "config.json" and chr(data[place]) in " \n":
                continue  # between the values of a JSON text
            damaged = bytearray(data)
            damaged[place] ^= 4
            path.write_bytes(damaged)
            assert _error(folder).startswith(str(path)), place
        path.write_bytes(data)
    load_quantized(folder)


def _rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Weights that somebody else wrote, with a config that fits them."""
    path = folder / "weights.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    data = path.read_bytes()
    about = {"file": path.name, "bytes": len(data), "crc32": f"{zlib.crc32(data):08x}"}
    _configured(folder, lambda content: content.update(weights=about))


def _configured(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content.pop("crc32")
    change(content)
    plain = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    path.write_text(json.dumps({**content, "crc32": f"{zlib.crc32(plain):08x}"}))


def _put(name: str, place: Any, value: float) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        tensors[name][place] = value

    return change


TENSORS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "missing": (lambda t: t.pop(QKV), f"no {QKV}"),
    "scales": (lambda t: t.pop(f"{QKV}.scales"), f"no {QKV}.scales"),
    "vector": (lambda t: t.pop("final_norm.weight"), "no final_norm.weight"),
    "unknown": (
        lambda t: t.update({"blocks.7.up": np.ones(3, np.float32)}),
        "an unknown blocks.7.up",
    ),
    "zeros": (
        lambda t: t.update({f"{QKV}.zeros": np.ones((36, 1), np.int8)}),
        f"an unknown {QKV}.zeros",
    ),
    "renamed": (
        lambda t: t.update({"final_norm.wieght": t.pop("final_norm.weight")}),
        "no final_norm.weight; an unknown final_norm.wieght",
    ),
    "shape": (
        lambda t: t.update({QKV: t[QKV].T.copy()}),
        f"{QKV} is (24, 36), not (36, 24)",
    ),
    "flat": (lambda t: t.update({QKV: t[QKV].ravel()}), f"{QKV} is (864,), not (36, 24)"),
    "type": (
        lambda t: t.update({QKV: t[QKV].astype(np.int16)}),
        f"{QKV} is of the type I16, not I8",
    ),
    "halves": (
        lambda t: t.update({"final_norm.weight": np.ones(24, np.float16)}),
        "final_norm.weight is of the type F16, not F32",
    ),
    "nan": (_put("final_norm.weight", 3, np.nan), "final_norm.weight: 1 of 24 numbers"),
    "infinite-scale": (_put(f"{QKV}.scales", (5, 0), np.inf), f"{QKV}.scales: 1 of 36 numbers"),
    "negative-scale": (_put(f"{QKV}.scales", (5, 0), -0.5), f"{QKV}.scales: a scale is negative"),
    "-128": (_put(QKV, (0, 0), -128), f"{QKV}: holds -128"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit_are_named(case: str, folder: Path) -> None:
    change, message = TENSORS[case]
    _rewritten(folder, change)
    found = _error(folder)
    assert found.startswith(str(folder / "weights.safetensors"))
    assert message in found


CONFIGS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "version": (lambda c: c.update(version=2), "version 2; this program reads version 1"),
    "format": (lambda c: c.update(format="gguf"), "its format is not 'firsthand-quantized'"),
    "extra": (lambda c: c.update(comment="x"), "an unknown key comment"),
    "less": (lambda c: c.pop("record"), "no record"),
    "model-key": (lambda c: c["model"].update(n_layer=3), "nearest is 'model.n_layers'"),
    "model-type": (lambda c: c["model"].update(d_model="24"), "model.d_model is int"),
    "model-shape": (lambda c: c["model"].update(n_heads=5), "does not divide by n_heads"),
    "deeper": (lambda c: c["model"].update(n_layers=3), "no blocks.2.attention.qkv.weight"),
    "scheme": (
        lambda c: c["quantization"]["scheme"].update(weights="rows"),
        "quantization.scheme.weights is one of",
    ),
    "groups": (
        lambda c: c["quantization"]["scheme"].update(weights="group", group_size=7),
        "groups of 7 do not divide the 24 of embedding.weight",
    ),
    "other-scheme": (
        lambda c: c["quantization"]["scheme"].update(asymmetric=True),
        "no embedding.weight.zeros",
    ),
    "no-table": (lambda c: c.update(model=[1]), "model is a table; not [1]"),
    "no-weights": (lambda c: c.update(weights={}), "its table of the weights"),
    "elsewhere": (
        lambda c: c["weights"].update(file="../../etc/passwd"),
        "its table of the weights",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_do_not_fit_are_explained(case: str, folder: Path) -> None:
    change, message = CONFIGS[case]
    _configured(folder, change)
    found = _error(folder)
    assert found.startswith(str(folder))
    assert message in found


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "\xff", '{"format": 3}'])
def test_configs_that_are_none(text: str, folder: Path) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    assert _error(folder).startswith(str(folder / "config.json"))
    assert not is_quantized(folder)


def test_a_header_without_sense(folder: Path) -> None:
    path = folder / "weights.safetensors"
    data = b"\xff" * 7 + b"\x7f" + bytes(100)
    path.write_bytes(data)
    about = {"file": path.name, "bytes": len(data), "crc32": f"{zlib.crc32(data):08x}"}
    _configured(folder, lambda content: content.update(weights=about))
    assert _error(folder).startswith(str(path))


def test_without_verification_shapes_still_count(folder: Path) -> None:
    _rewritten(folder, _put("final_norm.weight", 3, np.nan))
    assert np.isnan(load_quantized(folder, verify=False).vectors["final_norm.weight"][3])
    _rewritten(folder, lambda t: t.pop(QKV))
    assert f"no {QKV}" in _error(folder, verify=False)


def test_no_folder_and_another_tokenizer(folder: Path, tmp_path: Path) -> None:
    assert "there is no such folder" in _error(tmp_path / "nowhere")
    assert not is_quantized(tmp_path / "nowhere")
    shutil.copytree(folder, tmp_path / "other")
    quantized = load_quantized(tmp_path / "other")
    Tokenizer([(0, 1)]).save(tmp_path / "other" / "tokenizer.json")
    with pytest.raises(QuantizationError, match="another tokenizer"):
        load_tokenizer(tmp_path / "other", quantized)
    (tmp_path / "other" / "tokenizer.json").unlink()
    with pytest.raises(QuantizationError, match="missing"):
        load_tokenizer(tmp_path / "other", quantized)
