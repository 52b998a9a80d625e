"""Low-rank adaptation: train a small correction to frozen matrices.

A product W x becomes W x + s B (A x) with A (rank, in), B (out, rank) and s = α / rank. B starts
at 0, so the function does not change when the adapters are added. An update of A and B moves W by
a matrix of that rank; what AdamW must remember shrinks from in · out to rank · (in + out) numbers.

Source: Hu et al. 2021, "LoRA", section 4.1.
"""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.model.settings import SettingsError, nearest, require_at_least
from firsthand.llm.model.transformer import Transformer

LoraForward: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
MATRICES = ("attention.qkv", "attention.output", "feed_forward.up", "feed_forward.down")
_ADAPTER = re.compile(r"\.lora_[ab]$")


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Which matrices get adapters, and of what size.

    Attributes:
        rank: of the correction.
        alpha: α; the correction is scaled by α / rank, so that the rank can change while the
            learning rate stays.
        matrices: of each block, by the names in MATRICES.
    """

    rank: int = 8
    alpha: float = 16.0
    matrices: tuple[str, ...] = MATRICES

    def __post_init__(self) -> None:
        require_at_least(self, 1, "rank")
        if not 0 < self.alpha < torch.inf:
            raise SettingsError(f"alpha is above 0; not {self.alpha}")
        for name in self.matrices:
            if name not in MATRICES:
                close = nearest(name, MATRICES)
                hint = f"the nearest is {close!r}" if close else f"valid: {', '.join(MATRICES)}"
                raise SettingsError(f"there is no matrix {name!r}; {hint}")
        if not self.matrices or len(set(self.matrices)) < len(self.matrices):
            raise SettingsError("matrices names at least one, and each once")


def lora_forward(
    x: Float[Tensor, "*rows in"],
    weight: Float[Tensor, "out in"],
    a: Float[Tensor, "rank in"],
    b: Float[Tensor, "out rank"],
    scale: float,
) -> Float[Tensor, "*rows out"]:
    """x Wᵀ + scale (x Aᵀ) Bᵀ: two narrow products, never the matrix B A."""
    return x @ weight.T + (x @ a.T * scale) @ b.T


class LoraLinear(nn.Linear):
    """A linear layer with an adapter. The frozen matrix keeps its name, so checkpoints fit both.

    Args:
        linear: whose weight and bias it takes over, frozen.
        rank, alpha: as `LoraSettings`.
        generator: of A's first values.
        forward: the part that computes the adapted product.

    Attributes:
        lora_a, lora_b: A (rank, in) and B (out, rank).
        scale: α / rank.
        active: whether the adapter takes part; off, the layer is the frozen one.
    """

    def __init__(
        self,
        linear: nn.Linear,
        rank: int,
        alpha: float,
        generator: torch.Generator | None,
        forward: LoraForward = lora_forward,
    ) -> None:
        # The weights come from `linear`: none are made here.
        super().__init__(
            linear.in_features, linear.out_features, linear.bias is not None, device="meta"
        )
        self.weight, self.bias = linear.weight, linear.bias
        self.weight.requires_grad_(False)
        if self.bias is not None:
            self.bias.requires_grad_(False)
        self.scale, self.active = alpha / rank, True
        self._product = forward
        self.lora_a = nn.Parameter(self.weight.new_empty(rank, self.in_features))
        self.lora_b = nn.Parameter(self.weight.new_zeros(self.out_features, rank))
        if not self.weight.is_meta:
            with torch.no_grad():
                first = torch.randn(self.lora_a.shape, generator=generator)
                self.lora_a.copy_(first / self.in_features**0.5)
        self._frozen: Tensor | None = None

    @property
    def merged(self) -> bool:
        """Whether `weight` holds W + s B A."""
        return self._frozen is not None

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """The product with the adapted matrix."""
        if self.merged or not self.active:
            return functional.linear(x, self.weight, self.bias)
        result = self._product(x, self.weight, self.lora_a, self.lora_b, self.scale)
        return result if self.bias is None else result + self.bias

    @torch.no_grad()
    def merge(self) -> None:
        """Write W + s B A into the weight; W is kept, since a subtraction would round."""
        if self.merged:
            return
        self._frozen = self.weight.detach().clone()
        self.weight += self.scale * (self.lora_b @ self.lora_a)

    @torch.no_grad()
    def unmerge(self) -> None:
        """W again, bit for bit."""
        if self._frozen is not None:
            self.weight.copy_(self._frozen)
            self._frozen = None

    def _save_to_state_dict(self, *arguments: Any) -> None:
        # Read back, the adapter would be added to what already holds it.
        if self.merged:
            raise AlignmentError(
                "the state of merged adapters is not what it was trained as: unmerge_lora or "
                "fold_lora first"
            )
        super()._save_to_state_dict(*arguments)

    def extra_repr(self) -> str:
        """As PyTorch prints a layer."""
        return f"{super().extra_repr()}, rank={len(self.lora_a)}, scale={self.scale:g}"


def add_lora(model: Transformer, settings: LoraSettings, seed: int) -> None:
    """Give the named matrices of each block adapters, in place, and freeze everything else.

    The model's function is the same as before. Give an optimizer the model only after this.

    Args:
        model: without adapters.
        settings: which and of what size.
        seed: of the first values of A; B is 0.
    Raises:
        AlignmentError: the model has adapters, or the rank is above what a matrix can have.
    """
    if lora_layers(model):
        raise AlignmentError("the model has adapters; remove_lora or fold_lora first")
    chosen = {
        f"blocks.{number}.{name}": model.get_submodule(f"blocks.{number}.{name}")
        for number in range(len(model.blocks))
        for name in settings.matrices
    }
    for name, layer in chosen.items():
        if not isinstance(layer, nn.Linear):
            raise AlignmentError(f"{name} is not a linear layer but {type(layer).__name__}")
        most = min(layer.in_features, layer.out_features)
        if settings.rank > most:
            raise AlignmentError(f"rank {settings.rank} is above the {most} that {name} can have")
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, layer in chosen.items():
        assert isinstance(layer, nn.Linear)
        adapted = LoraLinear(
            layer, settings.rank, settings.alpha, generator, model.parts.lora_forward
        )
        _put(model, name, adapted.train(layer.training))


def merge_lora(model: Transformer) -> None:
    """Write every adapter into its matrix, for reading alone; `unmerge_lora` is exact."""
    for layer in lora_layers(model).values():
        layer.merge()


def unmerge_lora(model: Transformer) -> None:
    """Every matrix as it was before `merge_lora`, bit for bit."""
    for layer in lora_layers(model).values():
        layer.unmerge()


def fold_lora(model: Transformer) -> None:
    """A plain model of the same function: every adapter written into its matrix, then forgotten.

    All its parameters can be trained.
    """
    _to_plain(model, merged=True)


def remove_lora(model: Transformer) -> None:
    """The model as it was before `add_lora`, bit for bit; all its parameters can be trained."""
    _to_plain(model, merged=False)


@contextmanager
def without_lora(model: Transformer) -> Iterator[None]:
    """The frozen model inside: a reference that takes no memory of its own.

    Raises:
        AlignmentError: the adapters are merged.
    """
    layers = list(lora_layers(model).values())
    if any(layer.merged for layer in layers):
        raise AlignmentError("the adapters are merged; unmerge_lora first")
    before = [layer.active for layer in layers]
    try:
        for layer in layers:
            layer.active = False
        yield
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer.active = active


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The layers with adapters by name; empty without."""
    return {n: m for n, m in model.named_modules() if isinstance(m, LoraLinear)}


def lora_state(model: Transformer) -> dict[str, Tensor]:
    """The adapters alone, by the names of the model's state."""
    return {n: p.detach() for n, p in model.named_parameters() if _ADAPTER.search(n)}


def has_lora(names: Iterable[str]) -> bool:
    """Whether a state with such names is of a model with adapters."""
    return any(_ADAPTER.search(name) for name in names)


@torch.no_grad()
def load_lora_state(model: Transformer, state: Mapping[str, Tensor]) -> None:
    """Copy such a state into the adapters of the model.

    Raises:
        AlignmentError: names or shapes differ, or the adapters are merged; nothing was changed.
    """
    if any(layer.merged for layer in lora_layers(model).values()):
        raise AlignmentError("the adapters are merged; unmerge_lora first")
    own = lora_state(model)
    differing = sorted(set(own) ^ set(state))
    if differing:
        raise AlignmentError(f"the adapters are of other matrices: {', '.join(differing[:4])}")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise AlignmentError(
                f"{name} is {tuple(tensor.shape)}; the model's is {tuple(own[name].shape)}"
            )
    for name, tensor in state.items():
        own[name].copy_(tensor)


def _to_plain(model: Transformer, *, merged: bool) -> None:
    for name, layer in lora_layers(model).items():
        layer.merge() if merged else layer.unmerge()
        plain = nn.Linear(
            layer.in_features, layer.out_features, layer.bias is not None, device="meta"
        )
        plain.weight, plain.bias = layer.weight, layer.bias
        _put(model, name, plain.train(layer.training))
    model.requires_grad_(True)


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, layer)
