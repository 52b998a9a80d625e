"""The decoder: embedding, blocks, last norm, output; with a loss that never holds all logits."""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from firsthand.llm.model.cache import PIECE
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.initialization import normal_
from firsthand.llm.model.layers import Block, Norm, Surroundings
from firsthand.llm.model.neighbours import Neighbours, same_text
from firsthand.llm.model.parts import Angles, Cache, Parts
from firsthand.llm.model.visibility import document_bias, padding_bias

Role: TypeAlias = Literal["embedding", "output", "matrix", "vector"]
Tokens: TypeAlias = Int[Tensor, "batch seq"]
Hidden: TypeAlias = Float[Tensor, "batch seq d_model"]
Starts: TypeAlias = Int[Tensor, " batch"]


class Loss(NamedTuple):
    """A sum of token losses and how many tokens it is over, so that means add up exactly.

    Attributes:
        total: nats, a scalar with a gradient.
        tokens: an integer scalar.
    """

    total: Tensor
    tokens: Tensor

    @property
    def mean(self) -> Tensor:
        """Nats per token; 0 when no token counts."""
        return self.total / self.tokens.clamp(min=1)


class Transformer(nn.Module):
    """A decoder-only language model made of the given parts.

    Args:
        config: its shape.
        parts: its code, such as `firsthand.llm.parts.FAST`.
        seed: of the first weights.

    Attributes:
        checkpoint_blocks: keep only each block's input for the backward pass and compute the rest
            of the block again (Chen et al. 2016).
    """

    def __init__(self, config: ModelConfig, parts: Parts, *, seed: int = 0) -> None:
        super().__init__()
        self.config, self.parts = config, parts
        self.checkpoint_blocks = False
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.neighbours = (
            Neighbours(config.neighbours, config.d_model) if config.neighbours else None
        )
        learned = config.positions == "learned"
        self.position_embedding = nn.Embedding(config.context, config.d_model) if learned else None
        self.blocks = nn.ModuleList(Block(config, parts, layer) for layer in range(config.n_layers))
        pre = config.norm_placement == "pre"
        self.final_norm = Norm(config, parts, config.d_model, config.norm) if pre else None
        self.output = (
            None if config.tied else nn.Linear(config.d_model, config.vocab_size, bias=False)
        )
        self._angles: dict[tuple[torch.device, torch.dtype], Angles] = {}
        self.initialize(seed)

    def initialize(self, seed: int) -> None:
        """First weights as `model.initialization` derives them; biases 0, norms 1.

        On the meta device there is nothing to fill.
        """
        if self.embedding.weight.is_meta:
            return
        generator = torch.Generator(device=self.embedding.weight.device).manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("bias") or name == "neighbours.weight":
                normal_(parameter, 0.0, None)
            elif self.role(name) == "vector":
                nn.init.ones_(parameter)
            else:
                normal_(parameter, self._deviation(name, parameter), generator)

    def _deviation(self, name: str, weight: Tensor) -> float:
        if self.role(name) == "output" and self.config.zero_init_projections:
            return 0.0
        if self.role(name) != "matrix":
            return self.config.embedding_std
        writes = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
        if writes and self.config.zero_init_projections:
            return 0.0
        sublayers = 2 * self.config.n_layers if writes else 0
        if self.config.init_std:
            return float(self.config.init_std / max(1, sublayers) ** 0.5)
        return self.parts.initial_deviation(weight.shape[1], sublayers)

    def role(self, name: str) -> Role:
        """What the parameter of that name is to an optimizer.

        "vector" (norms, biases, neighbours) takes no weight decay; "matrix" is what Muon makes
        orthogonal.
        """
        if name in ("embedding.weight", "position_embedding.weight"):
            return "embedding"
        if name == "output.weight":
            return "output"
        if name == "neighbours.weight":
            return "vector"
        return "matrix" if self.get_parameter(name).ndim == 2 else "vector"

    def matrix_rows(self, name: str) -> tuple[int, ...]:
        """The rows of each matrix that the parameter holds one above the other."""
        rows = self.get_parameter(name).shape[0]
        if name.endswith("attention.qkv.weight"):
            return self.config.qkv_rows
        if name.endswith("feed_forward.up.weight") and self.config.feed_forward == "swiglu":
            return rows // 2, rows // 2
        return (rows,)

    @property
    def output_weight(self) -> Tensor:
        """(vocab, d_model): the output matrix, the embedding's when they are tied."""
        return self.embedding.weight if self.output is None else self.output.weight

    def forward(
        self,
        tokens: Tokens,
        *,
        cache: Cache | None = None,
        documents: Tokens | None = None,
        starts: Starts | None = None,
    ) -> Float[Tensor, "batch seq vocab"]:
        """Logits for the token after each position. Arguments and errors: as `hidden`."""
        hidden = self.hidden(tokens, cache=cache, documents=documents, starts=starts)
        return self.parts.vocabulary_logits(hidden, self.output_weight)

    def loss(self, tokens: Tokens, targets: Tokens, *, documents: Tokens | None = None) -> Loss:
        """Cross-entropy in chunks of tokens.

        Args:
            tokens: the input.
            targets: the token after each position; negative ones do not count.
            documents: as `hidden`.
        """
        hidden = self.hidden(tokens, documents=documents).flatten(end_dim=1)
        wanted = targets.flatten()
        total = self.parts.cross_entropy(hidden, self.output_weight, wanted)
        return Loss(total, (wanted >= 0).sum())

    def hidden(
        self,
        tokens: Tokens,
        *,
        cache: Cache | None = None,
        documents: Tokens | None = None,
        starts: Starts | None = None,
    ) -> Hidden:
        """The stream after the last norm, which the output matrix reads.

        Args:
            tokens: (batch, seq), each below vocab_size.
            cache: holds the tokens before these, and these afterwards.
            documents: a number for each token's document in a packed sequence: attention stays
                within a document. Positions run on, which RoPE and ALiBi do not notice.
            starts: where each row's text begins, for rows of unequal length that end together: no
                token sees the padding before that. Results at the padding mean nothing.
        Raises:
            ValueError: no tokens, a text longer than the context, or documents with a cache.
        """
        self._require(tokens, cache, documents, starts)
        if cache is None or tokens.shape[1] <= cache.piece:
            return self._piece(tokens, cache, documents, starts)
        # A ring takes a long prompt in pieces, so that no key is overwritten while it is seen.
        pieces = torch.split(tokens, cache.piece, dim=1)
        return torch.cat([self._piece(piece, cache, None, starts) for piece in pieces], dim=1)

    def new_cache(
        self, batch: int, capacity: int = 0, *, piece: int = PIECE, dtype: torch.dtype | None = None
    ) -> Cache:
        """An empty cache for this model, on its device.

        Args:
            batch: rows generated together.
            capacity: the longest text; 0 is the context. A model with a window needs no more
                than window + piece - 1 slots and takes that if it is less.
            piece: with a window, the most tokens appended at once.
            dtype: of keys and values; None is the weights'.
        """
        capacity, window = capacity or self.config.context, self.config.window
        ring = bool(window) and window + piece - 1 < capacity
        weight = self.embedding.weight
        return self.parts.kv_cache(
            layers=self.config.n_layers,
            batch=batch,
            kv_heads=self.config.kv_heads,
            capacity=window + piece - 1 if ring else capacity,
            width=self.config.head_width,
            window=window if ring else 0,
            # A cache that knows nothing of neighbours serves all models without them.
            **({"neighbours": self.config.neighbours} if self.neighbours is not None else {}),
            dtype=dtype or weight.dtype,
            device=weight.device,
        )

    def _piece(
        self,
        tokens: Tensor,
        cache: Cache | None,
        documents: Tensor | None,
        starts: Tensor | None,
    ) -> Tensor:
        start = 0 if cache is None else cache.length
        new = tokens.shape[1]
        positions = torch.arange(start, start + new, device=tokens.device)
        # RoPE, ALiBi and windows see distances alone: only these need a row's own positions.
        own = positions if starts is None else (positions - starts[:, None]).clamp_(min=0)
        x = self._with_positions(self._embedded(tokens, positions, cache, documents, starts), own)
        around = Surroundings(
            angles=self._rotation(positions, start + new, x),
            bias=self._bias(positions, cache, documents, starts, x),
            cache=cache,
        )
        for block in self.blocks:
            if self.checkpoint_blocks and torch.is_grad_enabled():
                x = checkpoint(block, x, around, use_reentrant=False)
            else:
                x = block(x, around)
        if cache is not None:
            cache.advance(new)
        return x if self.final_norm is None else self.final_norm(x)

    def _embedded(
        self,
        tokens: Tensor,
        positions: Tensor,
        cache: Cache | None,
        documents: Tensor | None,
        starts: Tensor | None,
    ) -> Tensor:
        embed, weight = self.parts.embed, self.embedding.weight
        if self.neighbours is None:
            return embed(tokens, weight)
        count, same = self.config.neighbours, None
        if cache is None:
            rows = functional.pad(embed(tokens, weight), (0, 0, count, 0))
        else:
            rows = embed(cache.recall(tokens), weight)
        if not (cache is None and documents is None and starts is None):
            same = same_text(count, positions, documents, starts)
        return self.parts.mix_neighbours(rows, self.neighbours.weight, same)

    def _with_positions(self, x: Tensor, positions: Tensor) -> Tensor:
        if self.position_embedding is not None:
            return x + self.parts.embed(positions, self.position_embedding.weight)
        if self.config.positions == "sinusoidal":
            waves = self.parts.sinusoidal_positions(
                positions.flatten(), self.config.d_model, self.config.rope_base
            ).view(*positions.shape, -1)
            # Waves of mean square 1/2 would drown embeddings of the first scale.
            return x + (waves * 2**0.5 * self.config.embedding_std).to(x.dtype)
        return x

    def _rotation(self, positions: Tensor, end: int, x: Tensor) -> Angles | None:
        """cos and sin for these positions, from a table unless a ring has outrun the context."""
        if self.config.positions != "rope":
            return None
        width, base = self.config.head_width, self.config.rope_base
        dtype = torch.promote_types(x.dtype, torch.float32)
        if end > self.config.context:
            cos, sin = self.parts.rotary_angles(positions, width, base)
            return cos.to(dtype), sin.to(dtype)
        key = (x.device, dtype)
        if key not in self._angles:
            # A table first needed while generating must serve a training step too.
            with torch.inference_mode(False):
                everywhere = torch.arange(self.config.context, device=x.device)
                cos, sin = self.parts.rotary_angles(everywhere, width, base)
                self._angles[key] = (cos.to(dtype), sin.to(dtype))
        cos, sin = self._angles[key]
        return cos[end - len(positions) : end], sin[end - len(positions) : end]

    def _bias(
        self,
        positions: Tensor,
        cache: Cache | None,
        documents: Tensor | None,
        starts: Tensor | None,
        x: Tensor,
    ) -> Tensor | None:
        """None where plain causal attention is right, which the kernels run fastest."""
        window, new = self.config.window, len(positions)
        before = 0 if cache is None else cache.length
        alibi = self.config.positions == "alibi"
        narrow = 0 < window < before + new
        ring = cache is not None and cache.window > 0
        plain = not (alibi or narrow or ring)
        if plain and documents is None and starts is None:
            return None
        seen = positions if cache is None else cache.positions(new)
        biases = []
        if not plain or new > 1:
            slopes = self.parts.alibi_slopes(self.config.n_heads) if alibi else None
            biases.append(self.parts.visibility_bias(positions, seen, window, slopes))
        if documents is not None:
            biases.append(document_bias(documents))
        if starts is not None:
            biases.append(padding_bias(positions, seen, starts))
        bias = biases[0]
        for other in biases[1:]:
            bias = bias + other
        return bias.to(x.dtype)

    def _require(
        self,
        tokens: Tensor,
        cache: Cache | None,
        documents: Tensor | None,
        starts: Tensor | None,
    ) -> None:
        if tokens.ndim != 2 or tokens.shape[1] < 1:
            raise ValueError(f"tokens are (batch, seq) with seq at least 1: {tuple(tokens.shape)}")
        end = tokens.shape[1] + (0 if cache is None else cache.length)
        if starts is not None:
            if starts.shape != tokens.shape[:1]:
                raise ValueError(f"{tuple(starts.shape)} starts for {tokens.shape[0]} rows")
            end -= int(starts.min())
        endless = cache is not None and cache.window and self.config.positions != "learned"
        if end > self.config.context and not endless:
            raise ValueError(f"{end} tokens are longer than the context of {self.config.context}")
        if documents is not None and (cache is not None or documents.shape != tokens.shape):
            raise ValueError("documents need the shape of the tokens and no cache")
