"""Broken runs beside a healthy one, and which breakage a run's own figures tell of.

A breakage (`breakages`) is one switch; its signature (`signatures`) is what it leaves in the flow
of signals, gradients and updates. `exhibit` runs both and measures the signature. `diagnose` goes
the other way: it names the breakages whose signatures hold, and never guesses.

Sources of the signatures: Glorot & Bengio 2010 (first weights); Vaswani et al. 2017, section 3.2.1
(1/√width); Xiong et al. 2020 (norms behind the sum); Pascanu et al. 2013 (clipping); Kingma & Ba
2015, section 2.1 (the size of Adam's updates).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.audit.breakages import BREAKAGES, STEPS, Breakage, healthy_bench
from firsthand.llm.audit.errors import AuditError
from firsthand.llm.audit.flow import Flow, record_flow
from firsthand.llm.audit.signatures import SIGNATURES, Relation
from firsthand.llm.data.embedded import EmbeddedCorpus
from firsthand.llm.model.parts import Parts
from firsthand.llm.model.settings import nearest

_TEXT_BYTES = 300_000
FEWEST_STEPS = 6


@dataclass(frozen=True)
class Statement:
    """A relation, as it was measured in a broken and in a healthy run; None is not finite."""

    relation: Relation
    broken: float | None
    healthy: float | None


@dataclass(frozen=True)
class Exhibit:
    """A broken run beside the healthy one."""

    breakage: Breakage
    healthy: Flow
    broken: Flow

    @property
    def statements(self) -> list[Statement]:
        """The signature, measured."""
        return [
            Statement(relation, relation.figure(self.broken), relation.figure(self.healthy))
            for relation in SIGNATURES[self.breakage.name]
        ]

    @property
    def named(self) -> list[str]:
        """What `diagnose` says of the broken run."""
        return diagnose(self.broken)

    def to_json(self) -> dict[str, Any]:
        """Names, figures and the losses of both runs."""
        return {
            "name": self.breakage.name,
            "title": self.breakage.title,
            "what": self.breakage.what,
            "signature": [
                {
                    "says": statement.relation.says,
                    "bounds": statement.relation.bounds,
                    "broken": statement.broken,
                    "healthy": statement.healthy,
                }
                for statement in self.statements
            ],
            "diagnosed": self.named,
            "not_finite": self.broken.failure,
            "loss": {"broken": self.broken.losses(), "healthy": self.healthy.losses()},
        }


@dataclass(frozen=True)
class Finding:
    """What a flow says of one signature.

    Attributes:
        holding, failing, unknown: its relations by what became of them.
    """

    name: str
    holding: tuple[Relation, ...]
    failing: tuple[Relation, ...]
    unknown: tuple[Relation, ...]

    @property
    def matches(self) -> bool:
        """Whether the whole signature is there."""
        return not self.failing and not self.unknown

    @property
    def decided(self) -> bool:
        """Whether the flow tells: a relation that fails decides, whatever the others are."""
        return bool(self.failing) or not self.unknown


def findings(flow: Flow) -> list[Finding]:
    """Each signature's relations, by whether they hold."""
    result = []
    for name, relations in SIGNATURES.items():
        held = [(relation, relation.holds(flow)) for relation in relations]
        parts = (tuple(r for r, holds in held if holds is state) for state in (True, False, None))
        result.append(Finding(name, *parts))
    return result


def diagnose(flow: Flow) -> list[str]:
    """The breakages whose whole signature holds: none of a healthy run, several where they meet."""
    return [finding.name for finding in findings(flow) if finding.matches]


def verdict(flow: Flow) -> list[str]:
    """The diagnosis in sentences: the one breakage, or which relations hold and none is named."""
    found = findings(flow)
    names = [finding.name for finding in found if finding.matches]
    undecided = [finding.name for finding in found if not finding.decided]
    if len(names) == 1:
        lines = [f"One signature holds: {names[0]} ({BREAKAGES[names[0]].title})."]
    elif names:
        lines = [f"{len(names)} signatures hold, and none is chosen: {', '.join(names)}."]
    else:
        lines = ["No signature holds."]
    telling = {
        (relation.says, relation.bounds): relation.figure(flow)
        for finding in found
        for relation in finding.holding
        if not relation.qualifies
    }
    lines += [
        f"{says}: {value:.3g}, {bounds}."
        for (says, bounds), value in telling.items()
        if value is not None
    ]
    if undecided:
        lines.append(f"Not recorded, so not decided: {', '.join(undecided)}.")
    return lines


def exhibits(
    names: Iterable[str],
    parts: Parts,
    *,
    seed: int = 0,
    steps: int = STEPS,
    text: NDArray[np.uint8] | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Exhibit]:
    """Run breakages and one healthy run.

    Args:
        names: of breakages.
        parts: of the healthy model.
        seed: of weights and data, the same for all.
        steps: updates.
        text: bytes to learn; None is the running Python's library.
        progress: is told the name of each run before it begins.
    Raises:
        AuditError: no such breakage (names the nearest), or too few steps for a signature.
    """
    chosen = [_breakage(name) for name in names]
    if steps < FEWEST_STEPS:
        raise AuditError(f"a signature takes at least {FEWEST_STEPS} steps; not {steps}")
    learnt = gallery_text() if text is None else text
    tell = progress or (lambda name: None)
    tell("healthy")
    bench = healthy_bench(parts, seed=seed, steps=steps)
    healthy = record_flow(bench.config, bench.parts, learnt)
    result = []
    for breakage in chosen:
        tell(breakage.name)
        broken = breakage.switch(bench)
        flow = record_flow(broken.config, broken.parts, learnt)
        result.append(Exhibit(breakage, healthy, flow))
    return result


def gallery_text() -> NDArray[np.uint8]:
    """Bytes of the running Python's library, a sample from all over it."""
    corpus = EmbeddedCorpus(size=_TEXT_BYTES)
    return np.frombuffer("".join(corpus.texts()).encode(), np.uint8)


def _breakage(name: str) -> Breakage:
    if name not in BREAKAGES:
        close = nearest(name, BREAKAGES)
        hint = f"the nearest is {close!r}" if close else f"there are {', '.join(BREAKAGES)}"
        raise AuditError(f"there is no breakage {name!r}; {hint}")
    return BREAKAGES[name]


def compared(exhibit: Exhibit) -> list[tuple[str, float | None, float | None]]:
    """Name, healthy and broken value of figures that every run has, signature or not."""
    rows = []
    last = len(exhibit.healthy.flow)
    for step in (1, last):
        for says, layer, figure in _COMMON:
            values = [
                flow.logged(step, figure) if not layer else flow.at(step, layer, figure)
                for flow in (exhibit.healthy, exhibit.broken)
            ]
            if any(value is not None for value in values):
                rows.append((f"{says}, step {step}", values[0], values[1]))
    return rows


_COMMON = (
    ("loss, nats per byte", "", "loss"),
    ("norm of the gradient before clipping", "", "gradient_norm"),
    ("stream behind the last block, rms", "blocks.-1", "activation_rms"),
    ("logits, rms", "logits", "activation_rms"),
    ("entropy of attention, first block", "blocks.0", "attention_entropy"),
    ("gradients of the first block, rms", "blocks.0", "gradient_rms"),
    ("gradients of the last block, rms", "blocks.-1", "gradient_rms"),
    ("update / weight, first block", "blocks.0", "update_ratio"),
)
