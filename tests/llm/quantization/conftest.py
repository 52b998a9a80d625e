"""A model that has really learnt something, and configs that have every tensor and path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from firsthand.llm.data.loading import TokenStream
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST, REFERENCE
from firsthand.llm.tokenizer import Tokenizer
from firsthand.llm.training.evaluation import byte_lengths

torch.set_num_threads(1)
CONFIG = ModelConfig(
    vocab_size=257,
    context=48,
    d_model=48,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    d_ff=96,
    rope_pairing="interleaved",
)

SMALL = {"vocab_size": 31, "context": 40, "d_model": 24, "n_layers": 2, "n_heads": 4, "d_ff": 36}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gqa-untied": {"n_kv_heads": 2, "tied": False},
    "mqa-bias": {"n_kv_heads": 1, "bias": True, "rope_pairing": "interleaved"},
    "gpt2": {
        "positions": "learned",
        "norm": "layer",
        "feed_forward": "gelu",
        "bias": True,
    },
    "layer-without-bias": {"norm": "layer", "positions": "sinusoidal"},
    "relu2": {"feed_forward": "relu2", "qk_norm": True, "neighbours": 3, "tied": False},
    "relu2-bias": {"feed_forward": "relu2", "bias": True, "norm": "layer", "tied": False},
    "post": {"norm_placement": "post", "positions": "none"},
    "alibi-window": {"positions": "alibi", "window": 7},
    "wide-heads": {"d_head": 12, "n_kv_heads": 2},
}
MakeModel = Callable[..., Transformer]


@dataclass(frozen=True)
class Learnt:
    """A model, its tokenizer of bytes alone, and text it has seen and has not."""

    model: Transformer
    tokenizer: Tokenizer
    train: TokenStream
    validation: TokenStream

    @property
    def lengths(self) -> NDArray[np.int64]:
        return byte_lengths(self.tokenizer)


def _text(first: int, last: int) -> str:
    lines = (
        f"{n} plus {k} makes {n + k}, so it goes.\n" for n in range(first, last) for k in (3, 8)
    )
    return "".join(lines)


@pytest.fixture(scope="session")
def learnt() -> Learnt:
    tokenizer = Tokenizer([], special_tokens=("<|endoftext|>",))
    end = tokenizer.special_tokens["<|endoftext|>"]
    train = np.append(tokenizer.encode_array(_text(100, 700)), end).astype(np.uint32)
    validation = np.append(tokenizer.encode_array(_text(700, 780)), end).astype(np.uint32)
    model = Transformer(CONFIG, FAST, seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.from_numpy(train.astype(np.int64))
    for _ in range(150):
        starts = torch.randint(len(tokens) - 49, (16,), generator=generator)
        rows = torch.stack([tokens[start : start + 49] for start in starts])
        loss = model.loss(rows[:, :-1], rows[:, 1:]).mean
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 1.0
    streams = (TokenStream([ids], end) for ids in (train, validation))
    return Learnt(model.eval(), tokenizer, *streams)


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def model_of() -> MakeModel:
    """By the name of a variant: far from the first weights, so that no path is too faint to see."""

    def make(name: str, **more: Any) -> Transformer:
        config = ModelConfig(**{**SMALL, **VARIANTS[name], **more})
        model = Transformer(config, REFERENCE, seed=3)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def tokens_of() -> Callable[[int, int], NDArray[np.int64]]:
    def draw(batch: int, length: int) -> NDArray[np.int64]:
        return np.random.default_rng(length).integers(0, 31, (batch, length))

    return draw
