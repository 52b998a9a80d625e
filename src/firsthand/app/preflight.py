"""Whether a part gives the stack's numbers: compared on tiny inputs before a run takes it.

The check of a part's step proves more, but it proved the file as it was then. What a model calls is
compared inside of one: a few shapes of two layers, with equal weights once made of the reference
and once with the part in its place; loss, logits with and without a cache, and all gradients have
to agree. The parts of training and sampling are called directly, and what they change in place
counts like what they return.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.parts import Parts
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import REFERENCE

LOSS_TOLERANCE = 1e-4  # nats per token
TOLERANCE = 1e-3  # relative to the largest value, in float32

BATCH, SEQ, CONTEXT = 3, 7, 12
Outcomes = dict[str, Tensor]
Call = tuple[list[Any], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A small model in which parts are compared.

    Attributes:
        config: of the model.
        documents: the rows are packed of several documents.
    """

    config: ModelConfig
    documents: bool = False

    def __str__(self) -> str:
        c = self.config
        return f"a small model with {c.positions} positions, {c.norm} norm and {c.feed_forward}"


def _config(**choices: Any) -> ModelConfig:
    sizes = {"vocab_size": 23, "context": CONTEXT, "d_model": 16, "n_layers": 2, "n_heads": 4}
    return ModelConfig(**{**sizes, "d_ff": 20, **choices})


# Together they use every part of a model, each with all that it can be asked for.
SHAPES = (
    Shape(config=_config(n_kv_heads=2, qk_norm=True)),
    Shape(
        config=_config(
            rope_pairing="interleaved",
            window=3,
            feed_forward="gelu",
            norm="layer",
            norm_placement="post",
            bias=True,
            tied=False,
        )
    ),
    Shape(
        config=_config(positions="alibi", norm="layer", feed_forward="relu2", n_kv_heads=1),
        documents=True,
    ),
    Shape(config=_config(positions="sinusoidal", neighbours=2), documents=True),
)


def find_difference(name: str, part: Callable[..., Any]) -> str | None:
    """How far a part is from the reference, in words; None where it agrees.

    Args:
        name: the field of `Parts` that it would fill.
        part: a function or a class.
    Raises:
        Exception: whatever the part, or the stack with its results, raises.
        ValueError: nothing is known to compare a field of this name with.
    """
    shapes = [number for number in range(len(SHAPES)) if name in _expected(number)[2]]
    if name not in EXAMPLES and not shapes:
        raise ValueError(f"there is no comparison for the part {name}")
    if name in EXAMPLES:
        return _difference_of_calls(name, part)
    for number in shapes:
        config = SHAPES[number].config
        if name == "kv_cache" and config.neighbours and not _takes(part, "neighbours"):
            continue  # it serves all models without them
        found = _difference_in_model(number, replace(REFERENCE, **{name: part}))
        if found is not None:
            return found
    return None


def _takes(part: Callable[..., Any], argument: str) -> bool:
    parameters = inspect.signature(part).parameters
    return argument in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


# --------------------------------------------------------------------------- in a model


@cache
def _expected(number: int) -> tuple[dict[str, Tensor], Outcomes, frozenset[str]]:
    """Weights of a shape, what the reference makes of them, and the parts that it called."""
    called: set[str] = set()

    def noted(name: str) -> Callable[..., Any]:
        part = getattr(REFERENCE, name)

        def call(*arguments: Any, **named: Any) -> Any:
            called.add(name)
            return part(*arguments, **named)

        return call

    recording = replace(REFERENCE, **{field.name: noted(field.name) for field in fields(Parts)})
    model = Transformer(SHAPES[number].config, recording)
    called.clear()  # the first weights are made anew below
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # First weights hide mistakes: biases are 0, norms 1, and all scores near 0.
            centre = float(model.role(name) == "vector" and name.endswith("norm.weight"))
            parameter.copy_(centre + 0.5 * torch.randn(parameter.shape, generator=generator))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return weights, _outcomes(model, SHAPES[number]), frozenset(called)


def _difference_in_model(number: int, parts: Parts) -> str | None:
    weights, expected, _ = _expected(number)
    model = Transformer(SHAPES[number].config, parts)
    model.load_state_dict(weights)
    found = _outcomes(model, SHAPES[number])
    for what, wanted in expected.items():
        if what == "the loss":
            off, allowed = float((found[what] - wanted).abs()), LOSS_TOLERANCE
        else:
            off, allowed = _apart(found[what], wanted), TOLERANCE
        if not off <= allowed:
            return f"in {SHAPES[number]} {what} is off by {off:.2g} (allowed: {allowed:g})"
    return None


def _outcomes(model: Transformer, shape: Shape) -> Outcomes:
    """Loss, logits with and without a cache, and gradients, for the same tokens every time."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(shape.config.vocab_size, (BATCH, SEQ + 1), generator=generator)
    tokens, targets = text[:, :-1], text[:, 1:].clone()
    targets[0, 2], targets[1, 5] = -1, -100
    documents = None
    if shape.documents:
        documents = (torch.arange(SEQ) >= torch.tensor([[2], [4], [SEQ]])).long()
    loss = model.loss(tokens, targets, documents=documents).mean
    loss.backward()  # type: ignore[no-untyped-call]
    outcomes = {"the loss": loss.detach()}
    with torch.no_grad():
        outcomes["the largest logit error"] = model(tokens, documents=documents)
        kv = model.new_cache(BATCH, CONTEXT, piece=2)
        pieces = (tokens[:, :4], tokens[:, 4:5], tokens[:, 5:])
        cached = [model(piece, cache=kv) for piece in pieces]
        outcomes["the largest logit error with a cache"] = torch.cat(cached, dim=1)
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        outcomes[f"the gradient of {name}"] = (
            torch.zeros_like(parameter) if gradient is None else gradient
        )
    return outcomes


# --------------------------------------------------------------------------- by direct calls


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _adamw_calls() -> list[Call]:
    numbers = {"beta1": 0.8, "beta2": 0.9, "eps": 1e-3}
    calls: list[Call] = []
    for step, decay in ((1, 0.0), (3, 0.3)):
        shapes = ((3, 5), (2,))
        lists = [[_normal(*shape, seed=10 * kind + step) for shape in shapes] for kind in range(3)]
        seconds = [_normal(*shape, seed=40 + step).square() for shape in shapes]
        named = {"step": step, "learning_rate": 0.5, "weight_decay": decay, **numbers}
        calls.append(([*lists, seconds], named))
    return calls


def _averaging_calls() -> list[Call]:
    return [
        ([[_normal(3, 5), _normal(2)], [_normal(3, 5, seed=1), _normal(2, seed=2)], 0.9, n], {})
        for n in (1, 4)
    ]


def _clipping_calls() -> list[Call]:
    return [([[_normal(3, 5), _normal(2, seed=1)], most], {}) for most in (0.0, 0.5, 100.0)]


def _orthogonalizing_calls() -> list[Call]:
    coefficients = [(3.4445, -4.7750, 2.0315)] * 5
    return [([_normal(*shape), coefficients], {}) for shape in ((2, 3, 7), (1, 4, 4))]


def _cosine_calls() -> list[Call]:
    return [([step, 20, warmup, 0.1], {}) for warmup in (0, 5) for step in (0, 3, 4, 5, 11, 19, 25)]


def _wsd_calls() -> list[Call]:
    return [
        ([step, 20, warmup, 6, 0.1, shape], {})
        for warmup in (0, 5)
        for shape in ("linear", "sqrt")
        for step in (0, 3, 4, 5, 13, 14, 16, 19, 25)
    ]


def _logits() -> Tensor:
    return 2.0 * _normal(3, 11)


def _penalizing_calls() -> list[Call]:
    return [([_logits(), _normal(3, 11, seed=1) > 0, penalty], {}) for penalty in (1.3, 0.7)]


def _drawing_calls() -> list[Call]:
    generator = torch.Generator().manual_seed(2)
    uniforms = [torch.rand(3, generator=generator, dtype=torch.float64) for _ in range(8)]
    return [([torch.softmax(_logits(), dim=-1), numbers], {}) for numbers in uniforms]


def _accepting_calls() -> list[Call]:
    target = torch.softmax(2.0 * _normal(4, 11, seed=1), dim=-1)
    draft = torch.softmax(2.0 * _normal(3, 11, seed=2), dim=-1)
    best = target[:3].argmax(dim=-1).tolist()
    numbers = ([0.1, 0.2, 0.3, 0.4], [0.9, 0.8, 0.7, 0.6], [0.01, 0.99, 0.5, 0.3])
    return [
        ([target, draft, drafted, uniforms], {})
        for drafted in (best, [1, 2, 3])
        for uniforms in numbers
    ]


def _logits_and(*bounds: float) -> Callable[[], list[Call]]:
    return lambda: [([_logits(), bound], {}) for bound in bounds]


def _logprob_calls() -> list[Call]:
    targets = torch.tensor([3, -1, 0, 10, 10, -100])
    return [([_normal(6, 5), _normal(11, 5, seed=1), targets], {})]


def _lora_calls() -> list[Call]:
    factors = [
        _normal(*shape, seed=number) for number, shape in enumerate(((7, 5), (2, 5), (7, 2)))
    ]
    return [([_normal(*rows, 5, seed=9), *factors, 1.5], {}) for rows in ((3,), (2, 4))]


def _pair_calls() -> list[Call]:
    four = [3.0 * _normal(6, seed=seed) - 9.0 for seed in range(4)]
    return [([*four, beta, smoothing], {}) for beta in (0.1, 0.7) for smoothing in (0.0, 0.2)]


def _gae_calls() -> list[Call]:
    ends = torch.tensor([[6], [3], [1]])
    places = torch.arange(6)
    masks = [places < ends, (places > 0) & (places <= ends.clamp(max=5))]
    return [
        ([_normal(3, 6), _normal(3, 6, seed=1), mask], {"gamma": gamma, "lam": lam})
        for mask in masks
        for gamma, lam in ((1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.8, 0.0))
    ]


def _clipped_calls() -> list[Call]:
    old = _normal(3, 8) - 2.0
    now = old + 0.4 * _normal(3, 8, seed=1)
    return [
        ([now, old, _normal(*shape, seed=2), 0.8, high], {})
        for shape in ((3, 8), (3, 1))
        for high in (1.2, 1.3)
    ]


def _relative_calls() -> list[Call]:
    rewards = (_normal(4, 5) > 0.5).float()
    rewards[0, 0] = 1 - rewards[0, 1]
    return [([r, scaled, 1e-4], {}) for r in (rewards, _normal(2, 3)) for scaled in (True, False)]


EXAMPLES: dict[str, Callable[[], Sequence[Call]]] = {
    "initial_deviation": lambda: [([16, 0], {}), ([64, 0], {}), ([48, 6], {})],
    "penalize_repetition": _penalizing_calls,
    "scale_by_temperature": _logits_and(0.7, 1.6, 0.0),
    "keep_top_k": _logits_and(1, 4, 11, 50),
    "keep_top_p": _logits_and(0.2, 0.6, 0.95),
    "keep_min_p": _logits_and(0.02, 0.1, 0.5),
    "draw": _drawing_calls,
    "accept_drafted": _accepting_calls,
    "adamw": _adamw_calls,
    "orthogonalize": _orthogonalizing_calls,
    "cosine_schedule": _cosine_calls,
    "wsd_schedule": _wsd_calls,
    "clip_gradients": _clipping_calls,
    "average_weights": _averaging_calls,
    "token_logprobs": _logprob_calls,
    "lora_forward": _lora_calls,
    "dpo_loss": _pair_calls,
    "gae": _gae_calls,
    "clipped_objective": _clipped_calls,
    "relative_advantages": _relative_calls,
}
# What a run differentiates: for so many first arguments the gradients count like the results.
DIFFERENTIATED = {"token_logprobs": 2, "lora_forward": 4, "dpo_loss": 2, "clipped_objective": 1}


@torch.no_grad()
def _difference_of_calls(name: str, part: Callable[..., Any]) -> str | None:
    reference = getattr(REFERENCE, name)
    learnt = DIFFERENTIATED.get(name, 0)
    for (given, named), (same, _) in zip(EXAMPLES[name](), EXAMPLES[name](), strict=True):
        found = [*_leaves(_called(part, given, named, learnt)), *_leaves(given)]
        expected = [*_leaves(_called(reference, same, named, learnt)), *_leaves(same)]
        off = float("inf")
        if len(found) == len(expected):
            off = max(_apart(*pair) for pair in zip(found, expected, strict=True))
        if not off <= TOLERANCE:
            return (
                f"what {name}({_shown(same, named)}) returns or changes is off by {off:.2g} of "
                f"the largest value (allowed: {TOLERANCE:g})"
            )
    return None


def _called(
    part: Callable[..., Any], given: Sequence[Any], named: dict[str, Any], learnt: int
) -> Any:
    """What the part returns; and the gradients of the first arguments, if it is learnt through."""
    if not learnt:
        return part(*given, **named)
    with torch.enable_grad():
        inputs = [tensor.detach().clone().requires_grad_() for tensor in given[:learnt]]
        result = part(*inputs, *given[learnt:], **named)
        weights = torch.linspace(0.5, 1.5, result.numel()).view_as(result)
        gradients = [torch.zeros_like(tensor) for tensor in inputs]
        if result.requires_grad:
            total = (result * weights).sum()
            gradients = list(torch.autograd.grad(total, inputs, materialize_grads=True))
    return [result.detach(), *gradients]


def _leaves(value: Any) -> list[Tensor]:
    """The numbers of a value, in order."""
    if isinstance(value, Tensor):
        return [value.detach().double()]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in _leaves(item)]
    if value is None or isinstance(value, str):
        return []
    return [torch.tensor(float(value), dtype=torch.float64)]


def _apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected value; inf for another shape."""
    if found.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    apart = torch.where(found == expected, 0.0, (found - expected).abs())
    finite = expected[expected.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 1.0
    # `max` of a list may lose a NaN; infinity it keeps.
    return float(torch.nan_to_num(apart.max() / max(scale, 1e-9), nan=float("inf")))


def _shown(given: Sequence[Any], named: dict[str, Any]) -> str:
    texts = [_text(value) for value in given]
    return ", ".join([*texts, *(f"{name}={value!r}" for name, value in named.items())])


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return f"{len(value)} tensors"
    return repr(value)
