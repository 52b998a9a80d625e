"""How well a model predicts a text: nats per token, perplexity, bits per byte.

Nats per token depend on the tokenizer: longer tokens are fewer and each is harder. Bits per byte
divide by the bytes of the text instead, so models with different tokenizers, and compressors such
as gzip, can be compared on the same text:

    bits per byte = sum of the tokens' losses in nats / (ln 2 · bytes of text)

An end-of-text is predicted as any other token and has no bytes: to say where a text ends is part
of the cost of the text.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from firsthand.llm.data.loading import IGNORED, TokenIds, TokenStream, document_ids
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.training.config import Precision
from firsthand.llm.training.distributed import World
from firsthand.llm.training.precision import autocast

ByteLengths = NDArray[np.int64]


class Vocabulary(Protocol):
    """What `byte_lengths` needs of a tokenizer."""

    @property
    def special_tokens(self) -> Mapping[str, int]: ...

    def tokens(self) -> dict[int, bytes]: ...


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Sums over the tokens that were predicted, and what follows from them.

    Attributes:
        nats: the sum of their losses.
        tokens: how many.
        bytes: of text that they stand for; 0 when the lengths of the tokens are not known.
        seconds: that it took.
    """

    nats: float
    tokens: int
    bytes: int
    seconds: float

    @property
    def nats_per_token(self) -> float:
        """The mean loss."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """e^(nats per token); infinite where that is beyond float64."""
        return math.exp(self.nats_per_token) if self.nats_per_token < 709 else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """Bits of code per byte of text; None without bytes."""
        return self.nats / (math.log(2) * self.bytes) if self.bytes else None

    def to_record(self) -> dict[str, float | int | None]:
        """The figures by name, as metrics and the last line of a command have them."""
        return {
            "loss": self.nats_per_token,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "seconds": self.seconds,
        }


def byte_lengths(tokenizer: Vocabulary) -> ByteLengths:
    """(vocabulary,): the bytes of text that each token stands for; 0 for special tokens."""
    tokens = tokenizer.tokens()
    lengths = np.zeros(max(tokens) + 1, np.int64)
    for identity, text in tokens.items():
        lengths[identity] = len(text)
    lengths[list(tokenizer.special_tokens.values())] = 0
    return lengths


@dataclass(frozen=True)
class Windows:
    """A stream cut into sequences such that every token is a target exactly once.

    The first token is predicted from an end-of-text, as training shows the beginning of a text.
    Window k > 0 reads `overlap` tokens a second time as context and predicts the `length - overlap`
    tokens after them; so with overlap = length / 2 only the first targets of the stream have less
    than half a window of context.

    Attributes:
        tokens: of the stream.
        length: tokens in a window.
        overlap: tokens that are context alone, in every window but the first.
    """

    tokens: int
    length: int
    overlap: int = 0

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError("a stream without tokens has nothing to predict")
        if self.length < 1 or not 0 <= self.overlap < self.length:
            raise ValueError(f"windows of {self.length} tokens with {self.overlap} of context")

    def __len__(self) -> int:
        return 1 + -(-max(0, self.tokens - self.length) // (self.length - self.overlap))

    def spread(self, count: int) -> list[int]:
        """`count` of the windows at even distances, or all when there are no more."""
        total = len(self)
        return list(range(total)) if count >= total else [k * total // count for k in range(count)]

    def read(self, stream: TokenStream, chosen: list[int]) -> tuple[TokenIds, TokenIds]:
        """Inputs and targets of the chosen windows, (windows, length) each.

        A target is IGNORED where it is context or behind the end of the stream.
        """
        shape = (len(chosen), self.length)
        inputs = np.full(shape, stream.end_of_text, np.int64)
        targets = np.full(shape, IGNORED, np.int64)
        for row, window in enumerate(chosen):
            first = window * (self.length - self.overlap)
            count = min(self.length, self.tokens - first)
            context = self.overlap if window else 0
            stream.read(first, targets[row, :count])
            inputs[row, 1:count] = targets[row, : count - 1]
            if first:
                stream.read(first - 1, inputs[row, :1])
            targets[row, :context] = IGNORED
        return inputs, targets


def evaluate(
    model: Transformer,
    stream: TokenStream,
    *,
    lengths: ByteLengths | None = None,
    sequence_length: int = 0,
    batch_size: int = 8,
    overlap: int = 0,
    max_batches: int = 0,
    precision: Precision = "float32",
    documents: bool = False,
    world: World | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Predict every token of a stream once, or of a fixed sample of its windows.

    The result is a sum over tokens divided by their number, so it does not depend on how windows
    are put into batches or dealt out to ranks, except for rounding. Over a whole split the bytes
    equal those of its manifest.

    Args:
        model: on any device; with FSDP every rank has to call.
        stream: of the validation split, such as `data.loading.open_split(folder, "validation")`.
        lengths: of the vocabulary's tokens, by `byte_lengths`; None leaves out bits per byte.
        sequence_length: tokens in a window; 0 is the model's context.
        batch_size: windows in a forward pass of one rank.
        overlap: tokens of each window but the first that are context alone (see `Windows`).
        max_batches: at most so many batches over all ranks together, from windows at even
            distances, the same ones each time; 0 is the whole stream.
        precision: of the forward pass.
        documents: attention stays within a document.
        world: the ranks that share the work; None is this process alone.
        progress: is told the batches done and to do of this rank.
    Raises:
        ValueError: sizes that make no window, an empty stream, a token without a length.
    """
    started = time.perf_counter()
    windows = Windows(len(stream), sequence_length or model.config.context, overlap)
    if batch_size < 1 or max_batches < 0:
        raise ValueError(f"{max_batches} batches of {batch_size} windows")
    chosen = windows.spread(max_batches * batch_size or len(windows))
    rank, ranks = (world.rank, world.ranks) if world else (0, 1)
    rounds = -(-len(chosen) // (batch_size * ranks))
    sums = np.zeros(3)
    device = model.embedding.weight.device
    was_training = model.training
    model.eval()
    try:
        # No inference mode: what the model keeps for its next forward pass would be unusable
        # in training.
        with torch.no_grad(), autocast(precision, device):
            for done, rows in enumerate(_dealt(chosen, batch_size, rank, ranks, rounds), start=1):
                sums += _sums(model, windows.read(stream, rows), lengths, stream, documents)
                if progress is not None:
                    progress(done, rounds)
    finally:
        model.train(was_training)
    nats, tokens, size = world.sums(sums.tolist()) if world else sums.tolist()
    seconds = time.perf_counter() - started
    return Evaluation(nats=nats, tokens=int(tokens), bytes=int(size), seconds=seconds)


def _dealt(
    chosen: list[int], batch_size: int, rank: int, ranks: int, rounds: int
) -> Iterator[list[int]]:
    """This rank's windows, batch by batch; every rank has the same number of batches."""
    mine = chosen[rank::ranks]
    for number in range(rounds):
        # A rank that has run out repeats a window without targets, as FSDP needs its pass.
        yield mine[number * batch_size : (number + 1) * batch_size]


def _sums(
    model: Transformer,
    batch: tuple[TokenIds, TokenIds],
    lengths: ByteLengths | None,
    stream: TokenStream,
    documents: bool,
) -> NDArray[np.float64]:
    """Nats, tokens and bytes of one batch."""
    inputs, targets = batch
    if not len(inputs):
        inputs = np.full((1, 1), stream.end_of_text, np.int64)
        targets = np.full((1, 1), IGNORED, np.int64)
    device = model.embedding.weight.device
    numbers: Tensor | None = None
    if documents:
        numbers = torch.from_numpy(document_ids(inputs, stream.end_of_text)).to(device)
    x, y = torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device)
    loss = model.loss(x, y, documents=numbers)
    real = targets[targets >= 0]
    if lengths is not None and real.size and real.max() >= len(lengths):
        raise ValueError(f"token {real.max()} has no length: there are {len(lengths)} of them")
    size = 0 if lengths is None else int(lengths[real].sum())
    return np.array([float(loss.total), float(real.size), float(size)])
