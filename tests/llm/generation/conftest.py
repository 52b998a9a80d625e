"""Small models whose logits differ enough to be told apart, and what a chi-square says."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.parts import Parts
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.tokenizer.tokenizer import Tokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Transformer]:
    """Models of 31 tokens and 40 positions in float64, unless changed by name."""

    def made(
        *, parts: Parts = FAST, seed: int = 3, loud: float = 0.2, **changes: Any
    ) -> Transformer:
        small = {"vocab_size": 31, "context": 40, "d_model": 24, "n_layers": 2, "n_heads": 4}
        config = ModelConfig(**{**small, "d_ff": 20, **changes})
        model = Transformer(config, parts, seed=seed).double()
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
                parameter += loud * noise
        return model

    return made


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """256 bytes, no merge, and the token between documents with the id 256."""
    return Tokenizer([], special_tokens=["<|endoftext|>"])


@pytest.fixture(scope="session")
def p_value() -> Callable[[Sequence[int], Any], float]:
    """How probable counts at least as far from the expected probabilities are (Pearson 1900).

    A count where the probability is 0 gives 0.
    """

    def value(tokens: Sequence[int], probabilities: Any) -> float:
        p = np.asarray(probabilities, dtype=np.float64)
        counts = np.bincount(np.asarray(tokens), minlength=len(p))
        if counts[p == 0].any():
            return 0.0
        expected = p * counts.sum()
        # The chi-square holds for classes of at least 5: the rarest tokens are one together.
        order = np.argsort(expected)
        rare = int(np.searchsorted(np.cumsum(expected[order]), 5)) + 1
        classes = [order[:rare], *order[rare:, None]]
        expected = np.array([expected[c].sum() for c in classes])
        counts = np.array([counts[c].sum() for c in classes])
        statistic = float(((counts - expected) ** 2 / expected).sum())
        degrees = len(classes) - 1
        if degrees == 0:
            return 1.0
        halves: Tensor = torch.tensor([degrees / 2, statistic / 2], dtype=torch.float64)
        return float(torch.special.gammaincc(halves[0], halves[1]))

    return value
