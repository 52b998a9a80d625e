"""`firsthand audit`, as typed: a run, its integers, two audits, and what is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from firsthand.llm.audit.full import AuditRecord

Run = Callable[..., tuple[int, str, str]]
SETTINGS = (
    "model.d_model=32",
    "model.n_layers=2",
    "model.n_heads=2",
    "model.d_ff=48",
    "model.context=32",
    "model.vocab_size=300",
    "training.batch_size=8",
    "training.steps=10",
    "training.evaluate_every=10",
    "training.save_every=10",
    "training.sample_every=0",
    "training.flow_every=0",
    "data.validation_share=0.3",
    'data.source=["texts"]',
)
QUICK = ("--seconds", "0", "--measure", "500")


@pytest.fixture(scope="module")
def place(texts: Path, prepare: Callable[..., None]) -> Path:
    """Text, a run that was trained on it, its integers and its audit."""
    prepare(texts, "train", "-o", "run", *(w for s in SETTINGS for w in ("--set", s)))
    prepare(texts, "quantize", "run", "--measure", "500")
    prepare(texts, "audit", "run", *QUICK)
    return texts


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine that `firsthand machine` has not measured."""
    monkeypatch.setenv("FIRSTHAND_HOME", str(tmp_path / "home"))


def loaded(path: Path) -> AuditRecord:
    return AuditRecord.load(path)


def test_a_run(place: Path) -> None:
    found = loaded(place / "run/audit/audit.json")
    assert (found.about.kind, found.about.step, found.about.tied) == ("run", 10, True)
    assert found.about.int8_from == "run/int8"
    assert {fall.key for fall in found.waterfalls} >= {"cpu int8", "cpu float32", "cpu bfloat16"}
    step, engine, floats = found.footprints
    assert step.error is not None
    assert abs(step.error) < 0.02
    assert engine.predicted == engine.measured
    assert floats.predicted == floats.measured
    assert found.throughput is not None
    assert found.throughput.updates == 10
    assert found.quality.text == "the run's validation split"
    assert found.quality.bits_percent is not None
    assert abs(found.quality.bits_percent) < 1
    assert found.energies or "does not tell" in found.no_energy or "root" in found.no_energy
    page = (place / "run/audit/audit.html").read_text(encoding="utf-8")
    for words in ("Audit of run", "INT8 on the CPU engine", "to the first token", "bits per byte"):
        assert words in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_record_s_sums_are_written_too(place: Path) -> None:
    record = json.loads((place / "run/audit/audit.json").read_text())
    assert (record["format"], record["version"]) == ("firsthand-audit", 1)
    for fall in record["waterfalls"]:
        parts = sum(stage["seconds"] for stage in fall["token"])
        assert parts + fall["rest"] == pytest.approx(fall["token_whole"])
    assert json.loads(json.dumps(AuditRecord.from_json(record).to_json())) == record


def test_what_is_printed(firsthand: Run, place: Path, unmeasured: None) -> None:
    words = ("audit", "run", *QUICK, "--no-training", "-o", "other")
    code, out, err = firsthand(*words, folder=place)
    assert code == 0, err
    for expected in ("INT8 on the CPU engine", "tokens/s", "bits per byte", "other/audit.html"):
        assert expected in out
    assert "firsthand machine" in out
    assert all(len(line) <= 80 for line in out.splitlines())
    found = loaded(place / "other/audit.json")
    assert found.machine is None
    assert found.footprints[0].total is None
    assert "as was asked" in found.footprints[0].why
    assert found.throughput is not None
    assert found.throughput.share is None


def test_integers_whose_run_is_there_and_gone(firsthand: Run, place: Path, tmp_path: Path) -> None:
    words = (*QUICK, "--no-training", "--json", "-o", str(tmp_path / "a"))
    code, out, err = firsthand("audit", "run/int8", *words, folder=place)
    assert code == 0, err
    record = json.loads(out)
    assert record["about"]["kind"] == "quantized"
    assert record["quality"]["bits_before"] is not None
    before = loaded(place / "run/audit/audit.json").about.identity
    assert record["about"]["identity"] == before
    # Without the run the integers alone are audited.
    alone = tmp_path / "alone"
    shutil.copytree(place / "run/int8", alone)
    content = (alone / "config.json").read_text()
    shutil.move(place / "run", place / "moved")
    try:
        code, out, err = firsthand("audit", str(alone), *words, folder=place)
    finally:
        shutil.move(place / "moved", place / "run")
    assert code == 0, err
    record = json.loads(out)
    assert [fall["dtype"] for fall in record["waterfalls"]] == ["int8"]
    assert record["quality"]["bits_before"] is None
    assert record["quality"]["bits_after"] > 0
    assert any("is gone" in note for note in record["notes"])
    assert (alone / "config.json").read_text() == content


def test_a_run_without_metrics(firsthand: Run, place: Path, tmp_path: Path) -> None:
    copy = tmp_path / "quiet"
    shutil.copytree(place / "run", copy)
    (copy / "metrics.jsonl").unlink()
    shutil.rmtree(copy / "int8")
    code, _, err = firsthand("audit", str(copy), *QUICK, "--no-training", folder=place)
    assert code == 0, err
    found = loaded(copy / "audit/audit.json")
    assert found.throughput is None
    assert any("no metrics" in note for note in found.notes)
    assert found.about.int8_from == "rounded for this audit"
    page = (copy / "audit/audit.html").read_text(encoding="utf-8")
    assert "Nothing is known of the training" in page


def test_a_model_without_a_run(firsthand: Run, place: Path, tmp_path: Path) -> None:
    words = (*QUICK, "--json", "-o", str(tmp_path))
    code, out, err = firsthand("audit", "run/model", *words, folder=place)
    assert code == 0, err
    record = json.loads(out)
    assert record["about"]["kind"] == "hugging face"
    assert record["throughput"] is None
    assert "embedded corpus" in record["quality"]["text"]


def test_two_machines(firsthand: Run, place: Path, tmp_path: Path) -> None:
    first = loaded(place / "run/audit/audit.json")
    processor = replace(first.processor, model="Another CPU")
    falls = tuple(replace(fall, token_whole=2 * fall.token_whole) for fall in first.waterfalls[:2])
    second = replace(first, processor=processor, waterfalls=falls, throughput=None)
    second.save(tmp_path / "b.json")
    words = ("--compare", "run/audit/audit.json", str(tmp_path / "b.json"))
    code, out, err = firsthand("audit", *words, "--json", "-o", str(tmp_path), folder=place)
    assert code == 0, err
    found = json.loads(out)
    assert found["names"] == [first.processor.model, "Another CPU"]
    assert found["warnings"] == []
    lines = {line["name"]: line for line in found["lines"]}
    assert lines["INT8 on the CPU engine: a token"]["ratio"] == pytest.approx(2)
    assert lines["bfloat16 on PyTorch: a token"]["values"][1] is None
    assert lines["bfloat16 on PyTorch: a token"]["ratio"] is None
    code, out, err = firsthand("audit", *words, "-o", str(tmp_path), folder=place)
    assert code == 0, err
    assert "Another CPU" in " ".join(out.split())
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "Another CPU" in page


def changed(record: dict[str, Any], **values: Any) -> str:
    return json.dumps({**record, **values})


def test_two_models(firsthand: Run, place: Path, tmp_path: Path) -> None:
    record = json.loads((place / "run/audit/audit.json").read_text())
    about = record["about"]
    other = {**about, "model": {**about["model"], "n_layers": 3}, "name": "other"}
    (tmp_path / "b.json").write_text(changed(record, about=other))
    words = ("audit", "--compare", "run/audit/audit.json", str(tmp_path / "b.json"))
    code, out, err = firsthand(*words, "-o", str(tmp_path), folder=place)
    assert code == 0, err
    assert "different models" in out
    weights = {**about, "identity": "0" * 16}
    (tmp_path / "b.json").write_text(changed(record, about=weights))
    code, out, err = firsthand(*words, "-o", str(tmp_path), folder=place)
    assert code == 0, err
    assert "different weights" in " ".join(out.split())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("[]", "no audit"),
        ('{"format": "firsthand-audit", "version": 2}', "version 2"),
        ('{"format": "firsthand-audit", "version": 1}', "damaged at"),
    ],
)
def test_what_is_no_audit(
    firsthand: Run, place: Path, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "b.json").write_text(text)
    words = ("audit", "--compare", "run/audit/audit.json", str(tmp_path / "b.json"))
    code, _, err = firsthand(*words, folder=place)
    assert code == 1
    assert message in err
    assert "b.json" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere",), "there is no such run"),
        (("texts",), "not a run"),
        (("run", "run/int8"), "one model"),
        (("--compare", "run"), "two audits"),
        (("--compare", "a.json", "b.json"), "a.json: cannot be read"),
        (("run", "--measure", "-1"), "at least 0"),
        (("run", "--seconds", "1e9"), "0 to 600"),
        (("run", "--step", "7"), "no checkpoint of step 7"),
        (("run/int8", "--step", "7"), "no step 7"),
        (("run", "-o", "run/config.toml"), "is a file"),
    ],
)
def test_bad_input(firsthand: Run, place: Path, words: tuple[str, ...], message: str) -> None:
    code, _, err = firsthand("audit", *words, folder=place)
    assert code == 1
    assert message in err
    assert "Traceback" not in err
