"""The tensors of a model by name, from its config alone: which are matrices in 8 bits."""

from __future__ import annotations

from firsthand.llm.model.config import ModelConfig

EMBEDDING = "embedding.weight"
OUTPUT = "output.weight"


def matrix_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(rows, cols) of every matrix that is quantized, in the order of the forward pass."""
    d, inner = config.d_model, config.hidden_width
    up = inner * (2 if config.feed_forward == "swiglu" else 1)
    shapes = {EMBEDDING: (config.vocab_size, d)}
    for layer in range(config.n_layers):
        block = f"blocks.{layer}."
        shapes[f"{block}attention.qkv.weight"] = (sum(config.qkv_rows), d)
        shapes[f"{block}attention.output.weight"] = (d, config.qkv_rows[0])
        shapes[f"{block}feed_forward.up.weight"] = (up, d)
        shapes[f"{block}feed_forward.down.weight"] = (d, inner)
    if not config.tied:
        shapes[OUTPUT] = (config.vocab_size, d)
    return shapes


def vector_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every other parameter, kept in float32."""
    shapes: dict[str, tuple[int, ...]] = {}
    if config.neighbours:
        shapes["neighbours.weight"] = (config.neighbours, config.d_model)
    if config.positions == "learned":
        shapes["position_embedding.weight"] = (config.context, config.d_model)
    for layer in range(config.n_layers):
        block = f"blocks.{layer}."
        for norm in ("attention_norm", "feed_forward_norm"):
            shapes |= _norm(config, f"{block}{norm}")
        if config.qk_norm:
            for norm in ("query_norm", "key_norm"):
                shapes[f"{block}attention.{norm}.weight"] = (config.head_width,)
    if config.norm_placement == "pre":
        shapes |= _norm(config, "final_norm")
    if config.bias:
        rows = {name: shape[0] for name, shape in matrix_shapes(config).items()}
        for name in rows.keys() - {EMBEDDING, OUTPUT}:
            shapes[name.removesuffix("weight") + "bias"] = (rows[name],)
    return shapes


def output_matrix(config: ModelConfig) -> str:
    """The matrix whose rows the logits are products with."""
    return EMBEDDING if config.tied else OUTPUT


def _norm(config: ModelConfig, name: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (config.d_model,)}
    if config.norm == "layer" and config.bias:
        shapes[f"{name}.bias"] = (config.d_model,)
    return shapes
