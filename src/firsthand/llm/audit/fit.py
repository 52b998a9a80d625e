"""How a model is trained within a budget of memory: the fastest settings that fit, and why.

Every combination of rows at a time (the divisors of the batch), checkpointing and precision is
predicted in bytes (`ledger`) and seconds (`latency`). Of those that fit, the fastest is taken;
among those that are as fast as a prediction can tell, the one that needs least memory. The batch
itself, the length and the model are the learner's and stay as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from firsthand.llm.audit.budget import (
    MB,
    Budget,
    BudgetError,
    Candidate,
    Device,
    amount,
    candidate,
)
from firsthand.llm.audit.errors import AuditError
from firsthand.llm.audit.reasons import Choice, Raised, choices, raised
from firsthand.llm.audit.records import DeviceCeilings
from firsthand.llm.model.config import parameter_counts
from firsthand.llm.training.config import Precision, RunConfig

# Tokens for each parameter at which a given amount of computation is spent best (Hoffmann et al.
# 2022, "Training compute-optimal large language models", section 3.4).
TOKENS_PER_PARAMETER = 20
# Predictions this near to each other say nothing about which is faster.
SAME_SPEED = 0.02
# Settings that `fit` chooses; one that is pinned keeps the value of the config.
CHOSEN = ("micro_batch", "checkpoint_blocks", "precision")


@dataclass(frozen=True)
class Plan:
    """A run that fits, and what was known when it was chosen.

    Attributes:
        config: the run, as `firsthand train` takes it.
        budget: what it had to fit.
        chosen: its predictions.
        choices: why.
        raised: what would take more, the most first.
        tokens: to train on.
        parameters: of the model.
    """

    config: RunConfig
    budget: Budget
    chosen: Candidate
    choices: tuple[Choice, ...]
    raised: tuple[Raised, ...]
    tokens: int
    parameters: int

    @property
    def total(self) -> int:
        """Bytes with the reserve."""
        return self.chosen.ledger.total + self.budget.reserve

    @property
    def tokens_per_second(self) -> float | None:
        """None where the device was not measured."""
        found = self.chosen.prediction
        return None if found is None else self.config.tokens_per_step / found.seconds

    @property
    def hours(self) -> float | None:
        """To the tokens; None where the device was not measured."""
        rate = self.tokens_per_second
        return None if rate is None else self.tokens / rate / 3600

    @property
    def total_flops(self) -> float:
        """Of the whole training."""
        return self.chosen.flops * self.tokens / self.config.tokens_per_step

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a file or another program."""
        found = self.chosen.prediction
        return {
            "device": self.budget.device,
            "budget": self.budget.memory,
            "reserve": self.budget.reserve,
            "total": self.total,
            "ledger": self.chosen.ledger.to_json(),
            "choices": {choice.name: choice.value for choice in self.choices},
            "reasons": {choice.name: choice.reason for choice in self.choices},
            "raised": [
                {"name": r.name, "from": r.before, "to": r.after, "total": r.total}
                for r in self.raised
            ],
            "parameters": self.parameters,
            "tokens": self.tokens,
            "flops_per_update": self.chosen.flops,
            "bytes_per_update": self.chosen.bytes,
            "seconds_per_update": None if found is None else found.seconds,
            "lower_bound": found is not None and found.bound,
            "tokens_per_second": self.tokens_per_second,
            "hours": self.hours,
        }


def fit(
    config: RunConfig,
    given: Budget,
    ceilings: DeviceCeilings | None = None,
    *,
    tokens: int = 0,
    pinned: Collection[str] = (),
) -> Plan:
    """The fastest settings of a run that fit a budget.

    Args:
        config: of the run; its batch, length and model stay.
        given: the budget.
        ceilings: measured on the device; None leaves times out.
        tokens: to train on; 0 is 20 for each parameter. The steps follow, unless they are pinned.
        pinned: names of `[training]` that keep the config's value.
    Raises:
        BudgetError: nothing fits; says the smallest budget that would.
        AuditError: ceilings of another device, or a negative number of tokens.
    """
    if tokens < 0:
        raise AuditError(f"tokens are at least 1, or 0 for 20 a parameter; not {tokens}")
    if ceilings is not None and ceilings.device != given.device:
        raise AuditError(f"these limits are a {ceilings.device}'s; the plan is for {given.device}")
    parameters = sum(parameter_counts(config.model).values())
    tokens = tokens or TOKENS_PER_PARAMETER * parameters
    if "steps" not in pinned:
        steps = -(-tokens // config.tokens_per_step)
        config = replace(config, training=replace(config.training, steps=steps))
    else:
        tokens = config.training.steps * config.tokens_per_step
    all_ = [
        candidate(each, given.device, ceilings)
        for each in _settings(config, given.device, ceilings, pinned)
    ]
    fitting = [each for each in all_ if each.ledger.total <= given.usable]
    if not fitting:
        raise _nothing(config, given, all_, pinned)
    chosen = _best(fitting)
    return Plan(
        config=chosen.config,
        budget=given,
        chosen=chosen,
        choices=tuple(choices(chosen, all_, given)),
        raised=tuple(raised(chosen.config, given)),
        tokens=tokens,
        parameters=parameters,
    )


# --------------------------------------------------------------------------- the search


def _settings(
    config: RunConfig, device: Device, ceilings: DeviceCeilings | None, pinned: Collection[str]
) -> Iterator[RunConfig]:
    """Every combination of the settings that are chosen."""
    training = config.training
    batch = training.batch_size
    rows = [n for n in range(1, batch + 1) if batch % n == 0]
    if "micro_batch" in pinned:
        rows = [training.micro_batch or batch]
    kept = [False, True] if "checkpoint_blocks" not in pinned else [training.checkpoint_blocks]
    precisions: list[Precision] = [training.precision]
    if "precision" not in pinned:
        precisions = ["float32", "bfloat16"] if _pays(device, ceilings) else ["float32"]
    for precision in precisions:
        for checkpoint_blocks in kept:
            for micro_batch in rows:
                yield replace(
                    config,
                    training=replace(
                        training,
                        micro_batch=micro_batch,
                        checkpoint_blocks=checkpoint_blocks,
                        precision=precision,
                        device=device,
                    ),
                )


def _pays(device: str, ceilings: DeviceCeilings | None) -> bool:
    """Whether bfloat16 is worth a try: where its products are measured, by their speed."""
    if ceilings is None:
        return device == "cuda"
    rates = ceilings.flop_rates
    return rates.get("bfloat16", 0.0) > rates.get("float32", 0.0)


def _best(fitting: list[Candidate]) -> Candidate:
    """The fastest, and of those as fast as can be told apart the one with the least memory."""
    fastest = min(each.cost[0] for each in fitting)
    near = [each for each in fitting if each.cost[0] <= fastest * (1 + SAME_SPEED)]
    if near[0].prediction is None:
        # Equal FLOPs: the fewest bytes are the fastest, of which the precision decides most.
        least = min(each.cost[-1] for each in near)
        near = [each for each in near if each.cost[-1] <= least * (1 + SAME_SPEED)]
    return min(near, key=lambda each: (each.ledger.total, each.cost))


def _nothing(
    config: RunConfig, given: Budget, all_: list[Candidate], pinned: Collection[str]
) -> BudgetError:
    least = min(all_, key=lambda each: each.ledger.total)
    smallest = -(-(least.ledger.total + given.reserve) // MB) * MB
    training, model = least.config.training, config.model
    parameters = sum(parameter_counts(model).values())
    kept = least.ledger.weights + least.ledger.optimizer
    where = "VRAM" if given.device == "cuda" else "RAM"
    words = [f"Nothing fits {amount(given.memory)} of {where}."]
    if kept > given.usable:
        words.append(
            f"The model alone is bigger: {parameters / 1e6:,.1f}M weights and the optimizer's "
            f"state take {amount(kept)}, and {amount(given.reserve)} are reserved for "
            f"{given.reserve_reason}."
        )
    held = [name for name in CHOSEN if name in pinned]
    words.append(
        f"The smallest budget that would do is {smallest // MB} MB: {training.micro_batch} of "
        f"{training.batch_size} rows of {config.sequence_length} tokens at a time, blocks "
        f"{'computed twice' if training.checkpoint_blocks else 'kept'}, {training.precision}"
        f"{f', with {_joined(held)} as given' if held else ''}."
    )
    if not held:
        words.append(
            "A smaller budget needs a shorter training.sequence_length or a smaller model."
        )
    return BudgetError(" ".join(words), smallest)


def _joined(names: Collection[str]) -> str:
    return ", ".join(names)
