"""The report of a made-up run: what it shows, and what it does when a piece is missing."""

import json
import math
import random
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from firsthand.llm.model.config import parameter_counts, resized
from firsthand.llm.model.settings import to_toml
from firsthand.llm.parts import FAST
from firsthand.llm.tokenizer import train
from firsthand.llm.training.errors import TrainingError
from firsthand.llm.training.presets import run_config
from firsthand.llm.training.report.contents import read_contents
from firsthand.llm.training.report.page import report_html, write_report

SAMPLE = 'def __init__(self):\n    """</script></pre><script>alert(1)</script>&amp;"""\n'


def fake_run(
    folder: Path, *, steps: int = 500, until: int = 500, layers: int = 4, seed: int = 0
) -> Path:
    """A run as the loop would leave it: a loss that falls, noise, a spike, an event."""
    noise = random.Random(seed)
    config = run_config("nano", [f"training.steps={steps}", f"model.n_layers={layers}"])
    (folder / "checkpoints" / "step-00000400").mkdir(parents=True)
    (folder / "checkpoints" / "step-00000400" / "model.safetensors").write_bytes(b"x" * 3_500_000)
    (folder / "config.toml").write_text(to_toml(config), encoding="utf-8")
    whose = {
        name: {"whose": "stack", "where": where, "why": "no step builds it"}
        for name, where in FAST.origins().items()
    }
    own = {"whose": "yours", "where": "mine/model/feed_forward.py:12", "why": "mastered"}
    about = {
        "created": "2026-11-22T20:15:00+00:00",
        "versions": {"firsthand": "0.1.0", "torch": "2.13.0", "system": "Linux-6.1-x86_64"},
        "parts": FAST.origins(),
        "whose": {**whose, "swiglu": own},
        "gzip_bits_per_byte": 2.213,
    }
    (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")
    train(["text of a run"] * 3, 262, special_tokens=["<|endoftext|>"]).save(
        folder / "tokenizer.json"
    )
    lines: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    for step in range(1, until + 1):
        lines.append(_train_line(step, steps, noise))
        if step % 50 == 0:
            loss = _loss(step) + 0.05
            measures = {"loss": loss, "perplexity": math.exp(loss), "bits_per_byte": loss / 2.1}
            sums = {"tokens": 40_000, "bytes": 121_000, "seconds": 1.2}
            lines.append({"kind": "validation", "step": step, **measures, **sums})
        if step % 25 == 0:
            lines.append(_flow_line(step, layers, noise))
        if step % 100 == 0:
            samples.append({"step": step, "prompt": "import ", "text": f"{step} " + SAMPLE})
    lines.append({"kind": "event", "step": 200, "text": "Going on after step 200 <on> a laptop."})
    _write_lines(folder / "metrics.jsonl", lines)
    _write_lines(folder / "samples.jsonl", samples)
    return folder


def _loss(step: int) -> float:
    return 2.9 + 4.7 * math.exp(-step / 60) - 0.0011 * step


def _train_line(step: int, steps: int, noise: random.Random) -> dict[str, Any]:
    loss = _loss(step) + noise.gauss(0, 0.07)
    spike = 8.0 if step == 180 else 1.0
    return {
        "kind": "train",
        "step": step,
        "tokens": step * 8192,
        "loss": loss,
        "bits_per_byte": loss / 2.1,
        "gradient_norm": spike * (0.4 + 3 * math.exp(-step / 30)) * math.exp(noise.gauss(0, 0.2)),
        "learning_rate": 1e-3
        * min(1, step / 20)
        * (0.55 + 0.45 * math.cos(math.pi * step / steps)),
        "tokens_per_second": 31_000 * (1 + noise.gauss(0, 0.03)),
        "real_token_fraction": 1.0,
        "memory_bytes": 412_000_000 + min(step, 40) * 1_000_000,
        "seconds": step * 0.27,
    }


def _flow_line(step: int, layers: int, noise: random.Random) -> dict[str, Any]:
    names = ["embedding", *(f"blocks.{n}" for n in range(layers)), "final_norm"]
    flow: dict[str, Any] = {}
    for place, name in enumerate(names):
        wobble = math.exp(noise.gauss(0, 0.08))
        size = 0.05 * (1 + step / 100) * 1.6**place * wobble
        flow[name] = {
            "activation_rms": 1.0 + 0.01 * wobble if name == "final_norm" else size,
            "activation_gradient_rms": 2e-5 * 0.8**place * wobble,
            "gradient_rms": 3e-4 * wobble / (1 + place),
            "weight_rms": 0.09 + step * 1e-5,
            "update_rms": 1e-4,
            "update_ratio": 1e-3 * wobble * (1.2 - step / 500),
        }
        if name.startswith("blocks"):
            flow[name] |= {"attention_rms": size * 0.4, "feed_forward_rms": size * 0.7}
    return {"kind": "flow", "step": step, "seconds": 0.02, "layers": flow}


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


class _Page(HTMLParser):
    """The text, the elements and their attributes; raises where tags do not match."""

    _VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in self._VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def labels(self) -> list[str]:
        return [str(attributes["aria-label"]) for tag, attributes in self.elements if tag == "svg"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_run(tmp_path_factory.mktemp("runs") / "first-run")


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "first-run"))


def test_headline(run: Path) -> None:
    text = _Page(report_html(run)).text
    assert "first-run The run is complete: 500 steps. preset: nano" in text
    config = resized(run_config("nano").model, read_contents(run).vocabulary)
    figures = {
        "validation bits per byte": f"{(_loss(500) + 0.05) / 2.1:.3f}",
        "gzip -9 on the same text": "2.213",
        "validation loss, nats per token": f"{_loss(500) + 0.05:.4f}",
        "tokens": f"{500 * 8192:,}",
        "parameters": f"{sum(parameter_counts(config).values()):,}",
        "peak memory": "452.00 MB",
        "training time": "2 min 15 s",
    }
    for name, value in figures.items():
        assert f"{name} {value}" in text
    assert "What this report lacks" not in text


def test_plots_have_their_metrics_and_ends(run: Path) -> None:
    labels = _Page(report_html(run)).labels()
    titles = [label.partition(".")[0] for label in labels]
    assert titles == [
        "Loss, nats per token",
        "Bits per byte",
        "Perplexity",
        "Learning rate",
        "Norm of the gradient",
        "Tokens per second",
        "Peak memory, MB",
        "Activations, root mean square",
        "What attention adds",
        "What the feed-forward adds",
        "Gradients of activations",
        "Gradients of weights",
        "Update / weight",
        "Weights, root mean square",
        "Updates, root mean square",
    ]
    assert "training: from" in labels[0]
    assert "validation: from" in labels[0]
    assert "gzip -9: from 2.213" in labels[1]
    for layer in ("embedding", "blocks.0", "blocks.3", "final_norm"):
        assert f"{layer}: from" in labels[7]
    assert (
        "The same at every step: Share of positions that are trained on 1."
        in _Page(report_html(run)).text
    )


def test_what_an_update_counts_is_named(run: Path, tmp_path: Path) -> None:
    """DPO counts pairs: 160 of them a second are not 160 tokens."""
    folder = tmp_path / "pairs"
    shutil.copytree(run, folder)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    pairs = [{**line, "unit": "pairs"} if line["kind"] == "train" else line for line in lines]
    _write_lines(folder / "metrics.jsonl", pairs)
    page = _Page(report_html(folder))
    titles = [label.partition(".")[0] for label in page.labels()]
    assert "Loss, mean over pairs" in titles
    assert "Pairs per second" in titles
    assert "pairs per second, median" in page.text
    for words in ("okens per second", "nats per token"):
        assert words not in page.text


def test_the_page_is_alone(run: Path) -> None:
    """No script, and nothing that a browser would fetch."""
    page = report_html(run)
    parsed = _Page(page)
    tags = {tag for tag, _ in parsed.elements}
    assert not tags & {"script", "iframe", "object", "embed", "img", "form", "base"}
    for tag, attributes in parsed.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "src", "xlink:href", "action"):
                assert value == "data:,"
    assert not re.search(r"url\(|@import|https?://", page)


def test_what_a_model_writes_is_text(run: Path) -> None:
    page = report_html(run)
    assert "alert(1)" in page
    assert "<script" not in page
    assert " ".join(SAMPLE.split()) in _Page(page).text
    assert "Going on after step 200 <on> a laptop." in _Page(page).text


def test_whose_code(run: Path) -> None:
    text = _Page(report_html(run)).text
    assert f"1 of {len(FAST.origins())} parts are yours." in text
    assert "swiglu yours mine/model/feed_forward.py:12" in text
    about = json.loads((run / "run.json").read_text(encoding="utf-8"))
    del about["whose"]
    (run / "run.json").write_text(json.dumps(about), encoding="utf-8")
    text = _Page(report_html(run)).text
    assert f"0 of {len(FAST.origins())} parts are yours." in text
    assert f"swiglu stack {FAST.origins()['swiglu']}" in text


def test_cost_of_recording_is_stated(run: Path) -> None:
    assert "Recording took 0.40 s, 0.30% of the training time." in _Page(report_html(run)).text


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("metrics.jsonl", "metrics.jsonl: nothing has been logged yet."),
        ("samples.jsonl", "samples.jsonl: no sample has been written."),
        ("run.json", "run.json is missing."),
        ("config.toml", "config.toml is missing."),
        ("tokenizer.json", None),
        ("checkpoints", "There is no checkpoint."),
    ],
)
@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_a_missing_or_torn_piece_costs_itself(
    run: Path, missing: str, says: str | None, damage: str
) -> None:
    path = run / missing
    if path.is_dir():
        path.rename(run / "elsewhere")
    elif damage == "missing":
        path.unlink()
    else:
        raw = path.read_bytes()
        path.write_bytes(raw[: raw.rindex(b'"')])
        says = None if missing.endswith("jsonl") else f"{missing} cannot be read"
    text = _Page(report_html(run)).text
    if says is not None:
        assert says in text
    assert "Curves" in text


def test_a_damaged_line_is_left_out(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    lines[3], lines[9] = lines[3][:20], "[1, 2]"
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    contents = read_contents(run)
    assert contents.problems == ["metrics.jsonl: 2 damaged lines left out: 4, 10."]
    assert len(contents.metrics) == len(lines) - 2


def test_in_the_middle_of_a_run(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", until=120)
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind": "train", "st')
    text = _Page(report_html(run)).text
    assert "The run is at step 200 of 500: still running, or stopped there." in text


def test_before_the_first_step(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text(to_toml(run_config("nano")), encoding="utf-8")
    page = _Page(report_html(run))
    assert "No step has been logged yet." in page.text
    assert "No metric has been logged yet." in page.text
    assert "What this report lacks" in page.text
    assert not page.labels()


def test_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="there is no such run"):
        report_html(tmp_path / "nothing")
    with pytest.raises(TrainingError, match="not a run"):
        report_html(tmp_path)


def test_other_stages_bring_their_own_metrics(tmp_path: Path) -> None:
    """Neither the config nor the metrics need be those of pretraining."""
    run = tmp_path / "dpo"
    run.mkdir()
    (run / "config.toml").write_text('[dpo]\nbeta = 0.1\nnames = ["a", "b"]\n', encoding="utf-8")
    lines = [
        {"kind": "train", "step": s, "loss": 0.7 - s / 90, "reward_margin": s / 7, "accuracy": 0.5}
        for s in range(1, 30)
    ]
    lines += [{"kind": "validation", "step": 29, "reward_margin": 3.5, "win_rate": 0.61}]
    _write_lines(run / "metrics.jsonl", lines)
    page = _Page(report_html(run))
    titles = [label.partition(".")[0] for label in page.labels()]
    assert titles == ["Loss, nats per token", "Reward margin", "Win rate"]
    assert "validation: from 3.5 at step 29" in page.labels()[1]
    assert "dpo.beta 0.1" in page.text
    assert "Accuracy 0.5." in page.text
    assert "parameters not known" in page.text


def test_values_that_are_no_numbers_are_counted(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    lines = [
        {"kind": "train", "step": s, "loss": "NaN" if s == 4 else 3.0 / s, "gradient_norm": s % 3}
        for s in range(1, 12)
    ]
    lines += [{"kind": "flow", "step": 5, "layers": {"a": {"gradient_rms": "Infinity"}}}]
    _write_lines(run / "metrics.jsonl", lines)
    text = _Page(report_html(run)).text
    assert "1 values are not finite and left out." in text
    assert "3 values are not finite or not above 0 and left out." in text
    assert "No value can be drawn." in text


def test_steps_logged_again_after_a_resume_count_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    lines = [{"kind": "train", "step": s, "loss": 9.0} for s in (1, 2, 3)]
    lines += [{"kind": "train", "step": s, "loss": float(s)} for s in (2, 3, 4)]
    _write_lines(run / "metrics.jsonl", lines)
    found = read_contents(run).of_kind("train")
    assert [(record["step"], record["loss"]) for record in found] == [
        (1, 9),
        (2, 2),
        (3, 3),
        (4, 4),
    ]


def test_written_in_place_of_the_last_one(run: Path) -> None:
    assert write_report(run) == run / "report.html"
    before = (run / "report.html").read_text(encoding="utf-8")
    (run / "samples.jsonl").unlink()
    write_report(run)
    assert (run / "report.html").read_text(encoding="utf-8") != before
    assert not [path for path in run.iterdir() if "partial" in path.name]
