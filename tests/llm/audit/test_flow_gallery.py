"""Every breakage on three seeds: its signature and no other; the probes against plain formulas."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from firsthand.llm.audit.breakages import BREAKAGES, healthy_bench
from firsthand.llm.audit.errors import AuditError
from firsthand.llm.audit.flow import Flow, Probe, attention_figures, flow_of_run, record_flow
from firsthand.llm.audit.flow_gallery import (
    Exhibit,
    compared,
    diagnose,
    exhibits,
    findings,
    gallery_text,
    verdict,
)
from firsthand.llm.audit.gallery_page import gallery_html, plots
from firsthand.llm.audit.signatures import SIGNATURES, entering_norm, layer_parameters
from firsthand.llm.kernels.attention.with_torch import sdpa
from firsthand.llm.model.attention import attention
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import REFERENCE
from firsthand.llm.training.errors import TrainingError

torch.set_num_threads(1)
SEEDS = (0, 1, 2)
STEPS = 10


@cache
def _text() -> Any:
    return gallery_text()


@cache
def flow_of(name: str, seed: int) -> Flow:
    """The flow of a breakage, or of the healthy run."""
    bench = healthy_bench(REFERENCE, seed=seed, steps=STEPS)
    if name != "healthy":
        bench = BREAKAGES[name].switch(bench)
    return record_flow(bench.config, bench.parts, _text())


# ---------------------------------------------------------------------- the signatures


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["healthy", *BREAKAGES])
def test_a_run_has_its_own_signature_and_no_other(name: str, seed: int) -> None:
    assert diagnose(flow_of(name, seed)) == ([] if name == "healthy" else [name])


def test_every_breakage_has_a_signature_that_can_fail() -> None:
    assert list(SIGNATURES) == [name for name in BREAKAGES if name in SIGNATURES]
    assert set(SIGNATURES) == set(BREAKAGES)
    assert len(BREAKAGES) >= 10
    healthy = flow_of("healthy", 0)
    for relations in SIGNATURES.values():
        telling = [relation for relation in relations if not relation.qualifies]
        assert telling
        # In the healthy run each relation is decided: it tells against the breakage, or qualifies.
        assert all(relation.holds(healthy) is False for relation in telling)
        assert all(r.holds(healthy) is True for r in relations if r.qualifies)


def test_a_breakage_is_one_switch_and_the_seed_stays() -> None:
    bench = healthy_bench(REFERENCE, seed=7)
    for breakage in BREAKAGES.values():
        broken = breakage.switch(bench)
        assert broken != bench, breakage.name
        assert broken.config.seed == 7
        assert broken.config.training == bench.config.training
        changed = [
            name
            for name, origin in broken.parts.origins().items()
            if origin != bench.parts.origins()[name]
        ]
        assert len(changed) <= 1, breakage.name


def test_without_the_probes_nothing_is_guessed() -> None:
    """As the metrics of an ordinary run: no entropy, no weights on later keys, no silent units."""
    probed = {"attention_entropy", "future_weight", "distant_future_weight", "silent_share"}

    def bare(flow: Flow) -> Flow:
        records = [
            {
                **record,
                "layers": {
                    layer: {k: v for k, v in figures.items() if k not in probed}
                    for layer, figures in record["layers"].items()
                    if layer not in ("weights", "logits")
                },
            }
            for record in flow.flow
        ]
        return replace(flow, flow=tuple(records))

    hidden = {"no-score-scaling", "no-mask", "mask-one-late", "dead-relu", "bfloat16-weights"}
    for name in BREAKAGES:
        expected = [] if name in hidden else [name]
        assert diagnose(bare(flow_of(name, 0))) == expected, name
    left = {f.name for f in findings(bare(flow_of("healthy", 0))) if not f.decided}
    assert left == hidden
    assert "not decided: no-score-scaling" in " ".join(verdict(bare(flow_of("healthy", 0))))


def test_what_began_later_is_not_judged_by_its_first_step() -> None:
    flow = flow_of("large-init", 0)
    late = replace(flow, flow=flow.flow[3:], train=flow.train[3:])
    assert diagnose(late) == []
    states = {finding.name: finding for finding in findings(late)}
    assert not states["large-init"].decided
    assert not states["no-warmup"].decided


def test_the_verdict_says_what_holds() -> None:
    (first, *figures) = verdict(flow_of("no-clipping", 0))
    assert first == "One signature holds: no-clipping (No clipping)."
    assert len(figures) == 1
    assert f"{entering_norm(flow_of('no-clipping', 0)):.3g}, above 1.2." in figures[0]
    assert verdict(flow_of("healthy", 0)) == ["No signature holds."]
    both = healthy_bench(REFERENCE, steps=STEPS)
    for name in ("no-clipping", "no-warmup"):
        both = BREAKAGES[name].switch(both)
    flow = record_flow(both.config, both.parts, _text())
    assert diagnose(flow) == ["no-warmup", "no-clipping"]
    assert verdict(flow)[0] == ("2 signatures hold, and none is chosen: no-warmup, no-clipping.")


# ---------------------------------------------------------------------- the figures


@pytest.mark.parametrize("part", [attention, sdpa])
def test_attention_is_probed_from_outside(part: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    q, k = (torch.randn(1, heads, 5, 8, generator=generator) for heads in (4, 2))
    figures = attention_figures(part, q, k)
    keys = k.repeat_interleave(2, dim=1).double()
    scores = q.double() @ keys.mT / math.sqrt(8)
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    weights = torch.softmax(scores.masked_fill(hidden, -math.inf), dim=-1)
    entropies = [
        float(-(row[: i + 1] * row[: i + 1].log()).sum()) / math.log(i + 1)
        for head in weights[0]
        for i, row in enumerate(head)
        if i
    ]
    assert figures["attention_entropy"] == pytest.approx(np.mean(entropies), rel=1e-5)
    assert figures["future_weight"] == 0.0
    bias = torch.zeros(5, 5)
    open_figures = attention_figures(part, q, k, bias)
    everywhere = torch.softmax(scores, dim=-1)
    assert open_figures["future_weight"] == pytest.approx(
        float((everywhere * hidden).sum(-1).mean()), rel=1e-5
    )
    assert open_figures["distant_future_weight"] == pytest.approx(
        float(everywhere.triu(2).sum(-1).mean()), rel=1e-5
    )


def test_an_even_look_back_has_entropy_one() -> None:
    zeros = torch.zeros(1, 2, 7, 4)
    assert attention_figures(attention, zeros, zeros)["attention_entropy"] == pytest.approx(1.0)


def test_a_probed_run_is_the_same_run() -> None:
    config = ModelConfig(vocab_size=31, context=12, d_model=16, n_layers=2, n_heads=2, d_ff=20)
    tokens = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(1))
    probe = Probe()
    losses = []
    for parts in (REFERENCE, probe.probed(REFERENCE)):
        model = Transformer(config, parts, seed=5)
        loss = model.loss(tokens, tokens).total
        loss.backward()  # type: ignore[no-untyped-call]
        gradient = model.embedding.weight.grad
        assert gradient is not None
        losses.append((float(loss.detach()), float(gradient.sum())))
    assert losses[0] == losses[1]
    found = probe.taken()
    assert set(found) == {"blocks.0", "blocks.1", "logits"}
    assert set(found["blocks.1"]) == {
        "attention_entropy", "future_weight", "distant_future_weight", "silent_share",
    }  # fmt: skip
    assert probe.taken() == {}


def test_the_figures_of_a_recorded_flow() -> None:
    flow = flow_of("healthy", 0)
    assert [record["step"] for record in flow.flow] == list(range(1, STEPS + 1))
    assert len(flow.losses()) == STEPS
    assert flow.losses()[-1] < flow.losses()[0]
    assert flow.at(1, "blocks.-1", "gradient_rms") == flow.at(1, "blocks.3", "gradient_rms")
    assert flow.at(1, "blocks.9", "gradient_rms") is None
    assert flow.at(99, "blocks.0", "gradient_rms") is None
    assert flow.logged(99, "loss") is None
    # Clipped at 1: that is the norm of what enters, summed up from the layers' figures.
    norms = [norm for s in range(1, STEPS + 1) if (norm := flow.logged(s, "gradient_norm"))]
    assert max(norms) > 1.0
    assert entering_norm(flow) == pytest.approx(1.0, rel=1e-4)
    free = flow_of("no-clipping", 0)
    norms = [norm for s in range(1, STEPS + 1) if (norm := free.logged(s, "gradient_norm"))]
    assert entering_norm(free) == pytest.approx(max(norms), rel=1e-4)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tied": False, "positions": "learned", "norm": "layer", "bias": True},
        {"norm_placement": "post", "qk_norm": True, "neighbours": 2, "feed_forward": "gelu"},
        {"norm_placement": "post", "norm": "layer", "bias": True, "n_kv_heads": 1},
    ],
)
def test_layers_have_the_parameters_of_the_model(fields: dict[str, Any]) -> None:
    config = ModelConfig(
        vocab_size=31, context=12, d_model=16, n_layers=3, n_heads=2, d_ff=20, **fields
    )
    from firsthand.llm.training.gradient_flow import layer_of

    counts: dict[str, int] = {}
    for name, parameter in Transformer(config, REFERENCE).named_parameters():
        counts[layer_of(name)] = counts.get(layer_of(name), 0) + parameter.numel()
    assert layer_parameters(Flow(model=config, train=(), flow=())) == counts


def test_a_run_that_ends_at_nan_says_where() -> None:
    flow = flow_of("mask-one-early", 0)
    assert (flow.failure, flow.failed_step) == ("blocks.0.attention", 1)
    assert flow.losses() == []
    assert flow_of("healthy", 0).failure == ""


# ---------------------------------------------------------------------- from a run's folder


def test_the_metrics_of_a_run_are_a_flow(tmp_path: Path) -> None:
    from firsthand.llm.model.settings import to_record
    from firsthand.llm.training.runs import create_run

    bench = healthy_bench(REFERENCE, steps=STEPS)
    create_run(tmp_path / "run", bench.config)
    flow = flow_of("low-rate", 0)
    lines = [
        json.dumps(record) for pair in zip(flow.train, flow.flow, strict=True) for record in pair
    ]
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    read = flow_of_run(tmp_path / "run")
    assert to_record(read.model) == to_record(bench.config.model)
    assert diagnose(read) == ["low-rate"]
    (tmp_path / "run" / "metrics.jsonl").write_text(lines[0] + "\n", encoding="utf-8")
    with pytest.raises(TrainingError, match="flow_every"):
        flow_of_run(tmp_path / "run")
    with pytest.raises(TrainingError):
        flow_of_run(tmp_path / "nothing")


# ---------------------------------------------------------------------- exhibits and the page


def _exhibit(name: str) -> Exhibit:
    return Exhibit(BREAKAGES[name], flow_of("healthy", 0), flow_of(name, 0))


def test_an_exhibit_states_what_was_measured() -> None:
    record = json.loads(json.dumps(_exhibit("no-score-scaling").to_json()))
    first = record["signature"][0]
    assert first["broken"] == flow_of("no-score-scaling", 0).at(1, "blocks.0", "attention_entropy")
    assert first["healthy"] == flow_of("healthy", 0).at(1, "blocks.0", "attention_entropy")
    assert first["broken"] < 0.5 < first["healthy"]
    assert record["diagnosed"] == ["no-score-scaling"]
    rows = {says: (healthy, broken) for says, healthy, broken in compared(_exhibit("low-rate"))}
    healthy, broken = rows[f"loss, nats per byte, step {STEPS}"]
    assert healthy is not None
    assert broken is not None
    assert healthy < broken
    assert f"gradients of the last block, rms, step {STEPS}" in rows


def test_the_page_stands_alone_and_shows_each() -> None:
    shown = [_exhibit(name) for name in ("no-mask", "mask-one-early", "zero-init")]
    page = gallery_html(shown, {"updates": "10"})
    for exhibit in shown:
        assert f'id="{exhibit.breakage.name}"' in page
        for plot in plots(exhibit):
            assert plot.series
    assert "http" not in page.replace("http-equiv", "")
    assert "<script" not in page
    assert "blocks.0.attention" in page
    # Of a run that has no step, the healthy one alone is drawn.
    names = {series.name for plot in plots(shown[1]) for series in plot.series}
    assert names == {"healthy"}
    zero = {plot.title: plot for plot in plots(shown[2])}["Update / weight, first block"]
    assert zero.dropped == STEPS


def test_bad_names_and_steps_are_said() -> None:
    with pytest.raises(AuditError, match="nearest is 'no-mask'"):
        exhibits(["no-maks"], REFERENCE)
    with pytest.raises(AuditError, match="at least 6 steps"):
        exhibits(["no-mask"], REFERENCE, steps=3)


def test_exhibits_are_run_beside_one_healthy_run() -> None:
    told: list[str] = []
    found = exhibits(["zero-init"], REFERENCE, steps=6, text=_text(), progress=told.append)
    assert told == ["healthy", "zero-init"]
    assert found[0].named == ["zero-init"]
    assert len(found[0].healthy.flow) == 6
