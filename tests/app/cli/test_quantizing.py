"""`firsthand quantize`, and the commands that read what it leaves, as typed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., tuple[int, str, str]]
SETTINGS = (
    "model.d_model=32",
    "model.n_layers=2",
    "model.n_heads=2",
    "model.d_ff=48",
    "model.context=32",
    "model.vocab_size=300",
    "training.batch_size=8",
    "training.steps=30",
    "training.evaluate_every=30",
    "training.save_every=30",
    "training.sample_every=30",
    "training.sample_tokens=8",
    "training.flow_every=0",
    "data.validation_share=0.3",
    'data.source=["texts"]',
)


@pytest.fixture(scope="module")
def place(texts: Path, prepare: Callable[..., None]) -> Path:
    """Text, and a run that was trained on it."""
    prepare(texts, "train", "-o", "run", *(w for s in SETTINGS for w in ("--set", s)))
    return texts


def test_a_run_is_quantized_and_measured(firsthand: Run, place: Path) -> None:
    code, out, err = firsthand("quantize", "run", "--measure", "0", folder=place)
    assert code == 0, err
    assert {path.name for path in (place / "run" / "int8").iterdir()} == {
        "config.json",
        "weights.safetensors",
        "tokenizer.json",
    }
    for words in (
        "embedding (and output)",
        "blocks.1.feed_forward.down",
        "weights, bytes",
        "cache, bytes a token",
        "bits per byte",
        "all of the validation text",
        "run/int8",
    ):
        assert words in out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "\x1b" not in out
    record = json.loads((place / "run/int8/config.json").read_text())["record"]
    assert (record["step"], record["source"]) == (30, "run")
    found = record["evaluation"]
    assert abs(found["loss_percent"]) < 0.5
    # The commands that read it agree with the table.
    for folder, name in (("run", "before"), ("run/int8", "after")):
        code, out, err = firsthand("evaluate", folder, "--json", folder=place)
        assert code == 0, err
        figures = json.loads(out)
        assert figures["text"] == "validation split"
        assert figures["step"] == 30
        assert figures["bits_per_byte"] == pytest.approx(found[f"bits_per_byte_{name}"], rel=1e-5)
    code, out, err = firsthand(
        "generate", "run/int8", "3 plus", "--tokens", "20", "--seed", "1", folder=place
    )
    assert code == 0, err
    assert out.startswith("3 plus")


def test_every_option(firsthand: Run, place: Path) -> None:
    words = [
        *("--weights", "group", "--group-size", "16", "--asymmetric", "--activations", "none"),
        *("--cache", "float32", "--method", "gptq", "--smooth", "0.4", "--percentile", "99.5"),
        *("--text", "texts/3.txt", "--tokens", "500", "--measure", "600", "--step", "30"),
    ]
    code, out, err = firsthand("quantize", "run", "-o", "other", "--json", *words, folder=place)
    assert code == 0, err
    figures = json.loads(out)
    assert figures["settings"] == {
        "scheme": {
            "weights": "group",
            "group_size": 16,
            "asymmetric": True,
            "percentile": 99.5,
        },
        "activations": "none",
        "cache": "float32",
        "method": "gptq",
        "smoothing": 0.4,
        "damping": 0.01,
        "activation_order": False,
        "calibration_tokens": 500,
    }
    assert figures["folder"] == "other"
    assert figures["evaluation"]["tokens"] <= 600 + 16 * 16
    assert not figures["evaluation"]["whole_split"]
    assert "blocks.0.attention.qkv.weight" in figures["smoothed"]
    assert figures["cache_bytes_before"] == figures["cache_bytes_after"]
    code, out, _ = firsthand("evaluate", "other", "--json", folder=place)
    assert code == 0
    assert json.loads(out)["text"] == "validation split"


def test_a_hugging_face_folder(firsthand: Run, place: Path) -> None:
    code, out, err = firsthand(
        "quantize", "run/model", "-o", "hf", "--json", "--text", "texts", folder=place
    )
    assert code == 0, err
    figures = json.loads(out)
    assert figures["step"] == 0
    assert abs(figures["evaluation"]["loss_percent"]) < 0.5
    code, out, err = firsthand("evaluate", "hf", "texts/0.txt", "--json", folder=place)
    assert code == 0, err
    assert json.loads(out)["text"] == "texts/0.txt"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere",), "no such run"),
        (("run", "--weights", "rows"), "scheme.weights is one of channel, tensor, group"),
        (("run", "--weights", "group", "--group-size", "7"), "groups of 7 do not divide"),
        (("run", "--group-size", "8"), "--group-size goes with --weights group"),
        (("run", "--percentile", "12"), "percentile is above 50"),
        (("run", "--smooth", "2"), "smoothing is from 0 to 1"),
        (("run", "--method", "gtpq"), "nearest is 'gptq'"),
        (("run", "--tokens", "0"), "calibration_tokens is at least 1"),
        (("run", "--measure", "-1"), "--measure is at least 0"),
        (("run", "--step", "7"), "no checkpoint of step 7"),
        (("run", "-o", "texts"), "texts: holds something else"),
        (("run", "--method", "gptq", "--text", "tiny.txt"), "needs 48 tokens"),
        (("run", "--text", "missing.txt"), "missing.txt"),
        (("run/model", "--text", "tiny.txt"), "too few"),
    ],
)
def test_bad_input_is_one_sentence(
    firsthand: Run, place: Path, words: tuple[str, ...], message: str
) -> None:
    (place / "tiny.txt").write_text("ab")
    code, out, err = firsthand("quantize", *words, folder=place)
    assert code == 1
    assert message in err
    assert out == ""
    assert "Traceback" not in err
    assert not list(place.glob("**/.*.partial"))


def test_a_quantized_folder_is_not_quantized_again_nor_read_when_damaged(
    firsthand: Run, place: Path
) -> None:
    code, _, err = firsthand(
        "quantize", "run", "-o", "small", "--measure", "300", "--tokens", "64", folder=place
    )
    assert code == 0, err
    code, _, err = firsthand("quantize", "small", folder=place)
    assert code == 1
    assert "small is quantized already" in err
    weights: Any = place / "small" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    code, _, err = firsthand("evaluate", "small", folder=place)
    assert code == 1
    assert "small/weights.safetensors: cut short" in err
    shutil.rmtree(place / "small")


def test_integers_are_not_exported(firsthand: Run, place: Path) -> None:
    code, _, err = firsthand(
        "quantize", "run", "-o", "whole", "--measure", "300", "--tokens", "64", folder=place
    )
    assert code == 0, err
    code, _, err = firsthand("export", "whole", "--format", "gguf", folder=place)
    assert code == 1
    assert "whole is quantized; export the run that it came from" in err
