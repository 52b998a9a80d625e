"""The reference: the model that alignment must not leave too far.

DPO needs of it only the log-probability of each answer, which never changes: it is computed once
and stored in the run, so that no second model is held while training. PPO and GRPO ask it about
answers that do not exist yet, and hold a frozen copy.
"""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from firsthand.llm.alignment.errors import AlignmentError, require_same_vocabulary
from firsthand.llm.alignment.logprobs import sequence_logprobs
from firsthand.llm.alignment.lora import remove_lora
from firsthand.llm.alignment.pair_data import pair_batch
from firsthand.llm.alignment.preferences import Pair
from firsthand.llm.data.files import write_atomically
from firsthand.llm.data.problems import DiskError
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.tokenizer import Tokenizer

FILE, BASE = "reference.safetensors", "base.safetensors"
_VALUES, _IDENTITY = "logprobs", "identity"


class ReferenceTable:
    """ln p of chosen and rejected under the reference, for each pair of a run.

    Args:
        path: of the file that keeps it; one that is there is read.
        identity: of the pairs and of the reference.
        count: of the pairs.
    Raises:
        AlignmentError: the file is damaged, or of other pairs or another reference.
    """

    def __init__(self, path: Path, identity: str, count: int) -> None:
        self.path, self.identity = path, identity
        self.values: Float[Tensor, "pairs 2"] = torch.full((count, 2), torch.nan)
        if path.exists():
            self._read()

    def missing(self, pairs: Sequence[int]) -> list[int]:
        """Those of the pairs that have no value yet, each once."""
        known = ~self.values[:, 0].isnan()
        return [pair for pair in dict.fromkeys(pairs) if not known[pair]]

    def of(self, pairs: Sequence[int]) -> list[tuple[float, float]]:
        """ln p of chosen and rejected, by pair.

        Raises:
            AlignmentError: one of them has no value.
        """
        if missing := self.missing(pairs):
            raise AlignmentError(f"the reference has no value for pair {missing[0]}")
        return [(chosen, rejected) for chosen, rejected in self.values[list(pairs)].tolist()]

    def fill(
        self, model: Transformer, pairs: Sequence[Pair], wanted: Sequence[int], batch: int
    ) -> int:
        """Compute what is missing of the wanted pairs, and store it.

        Args:
            model: the reference.
            pairs: all of them, as the table counts them.
            wanted: indices.
            batch: pairs of a forward pass; those of like length are computed together.
        Returns:
            How many were computed.
        Raises:
            AlignmentError: the file cannot be written, or a value is not finite.
        """
        missing = sorted(self.missing(wanted), key=lambda index: pairs[index].length)
        for start in range(0, len(missing), batch):
            chosen = missing[start : start + batch]
            rows = pair_batch([pairs[i] for i in chosen], model.embedding.weight.device, padding=0)
            with torch.no_grad():
                found = sequence_logprobs(model, rows.inputs, rows.targets).float().cpu()
            if not bool(found.isfinite().all()):
                place = pairs[chosen[int((~found.isfinite()).nonzero()[0]) % len(chosen)]].place
                raise AlignmentError(f"{place}: its probability under the reference is not finite")
            self.values[chosen] = found.view(2, len(chosen)).T
        if missing:
            self._write()
        return len(missing)

    def _read(self) -> None:
        try:
            with safe_open(self.path, framework="pt") as file:
                identity = (file.metadata() or {}).get(_IDENTITY)
                values = file.get_tensor(_VALUES)
        except (OSError, SafetensorError) as error:
            raise AlignmentError(f"{self.path}: damaged: {error}; remove it") from error
        if identity != self.identity or values.shape != self.values.shape:
            raise AlignmentError(
                f"{self.path}: of other pairs or of another reference; a run keeps what it began "
                "with"
            )
        self.values = values.clone()

    def _write(self) -> None:
        data = save({_VALUES: self.values}, metadata={_IDENTITY: self.identity})
        try:
            write_atomically(self.path, data)
        except DiskError as error:
            raise AlignmentError(str(error)) from error


def frozen_copy(model: Transformer) -> Transformer:
    """The model as it is now, in memory of its own, without gradients."""
    parts = model.parts
    # The parts are code, not state: both models run the same.
    memo = {id(parts): parts}
    frozen = copy.deepcopy(model, memo)
    return frozen.eval().requires_grad_(False)


def base_of(folder: Path, policy: Transformer) -> Transformer:
    """The model that a run began with: a frozen copy of the policy with the weights of its base.

    Args:
        folder: of the run, which keeps its base.
        policy: with or without adapters and heads.
    Raises:
        AlignmentError: the file cannot be read.
    """
    path = folder / BASE
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise AlignmentError(f"{path}: cannot be read: {error}") from error
    base = frozen_copy(policy)
    remove_lora(base)
    base.load_state_dict(weights, strict=False)
    return base


def require_same_tokens(
    reference: Transformer,
    reference_tokenizer: Tokenizer,
    model: Transformer,
    tokenizer: Tokenizer,
    name: str = "the reference",
) -> None:
    """Refuse a reference whose tokens mean something else.

    Args:
        name: of the reference, as a user knows it.
    Raises:
        AlignmentError: another vocabulary, or another tokenizer of the same size.
    """
    require_same_vocabulary(model.config.vocab_size, reference.config.vocab_size, name)
    if reference_tokenizer.hash != tokenizer.hash:
        raise AlignmentError(
            f"{name} has another tokenizer of the same size: its tokens mean something else"
        )
