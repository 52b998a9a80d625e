"""Weights to and from Hugging Face folders: config.json and model.safetensors.

Saved as Llama; loaded from Llama and from GPT-2. Queries, keys and values, and gate and up, are
one matrix each here and several there. A model whose RoPE pairs neighbouring features has the
rows of its queries and keys permuted on the way (`positions.interleaved_order`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.parts import Parts
from firsthand.llm.model.positions import half_order, interleaved_order
from firsthand.llm.model.settings import SettingsError
from firsthand.llm.model.transformer import Transformer

Weights = dict[str, Tensor]
Record = dict[str, Any]
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# What Llama's architecture fixes: any other value would be lost on the way.
_LLAMA = {
    "positions": "rope",
    "norm": "rms",
    "norm_placement": "pre",
    "feed_forward": "swiglu",
    "window": 0,
    "qk_norm": False,
    "neighbours": 0,
}


class ExchangeError(ValueError):
    """A model that the other format cannot hold, or files that are not what they should be."""


def save_llama(model: Transformer, folder: Path, extra: Mapping[str, Any] | None = None) -> None:
    """Write config.json and model.safetensors as transformers' LlamaForCausalLM reads them.

    Args:
        model: its config must be one that Llama's architecture has.
        folder: made if missing; the two files are replaced.
        extra: more keys for config.json, such as bos_token_id.
    Raises:
        ExchangeError: the config has what Llama lacks; names each field.
    """
    config = model.config
    odd = [f"{k} = {getattr(config, k)!r}" for k, v in _LLAMA.items() if getattr(config, k) != v]
    if odd:
        raise ExchangeError(f"Llama's architecture has no {', '.join(odd)}")
    folder.mkdir(parents=True, exist_ok=True)
    weights = llama_weights(model)
    dtype = str(model.embedding.weight.dtype).removeprefix("torch.")
    record = {**_llama_record(config), "torch_dtype": dtype, **(extra or {})}
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def load_hugging_face(folder: Path, parts: Parts, *, pairing: str = "half") -> Transformer:
    """A model from a folder in the format of Llama or GPT-2, in the dtype of its weights.

    Args:
        folder: holds config.json and model.safetensors, whole or in shards with an index.
        parts: the code of the model.
        pairing: of RoPE in the result, "half" or "interleaved"; the function is the same.
    Raises:
        ExchangeError: files missing or damaged, another architecture, or weights that are
            missing, left over or of another shape; names each.
    """
    record = _json(folder / CONFIG_FILE)
    kind = record.get("model_type")
    if kind not in ("llama", "gpt2"):
        raise ExchangeError(f"{folder / CONFIG_FILE}: model_type is {kind!r}, not llama or gpt2")
    stored = _stored_weights(folder)
    try:
        config = _llama_config(record) if kind == "llama" else _gpt2_config(record)
    except (KeyError, SettingsError) as error:
        raise ExchangeError(f"{folder / CONFIG_FILE}: {error}") from error
    if kind == "llama" and pairing == "interleaved":
        config = replace(config, rope_pairing="interleaved")
    try:
        weights = (_from_llama if kind == "llama" else _from_gpt2)(config, stored)
    except KeyError as error:
        raise ExchangeError(f"{folder}: there is no weight {error}") from error
    return _filled(config, parts, weights, folder)


def llama_weights(model: Transformer) -> Weights:
    """The weights by Llama's names, contiguous; a tied output is left out."""
    config, own = model.config, {k: v.detach() for k, v in model.state_dict().items()}
    weights = {"model.embed_tokens.weight": own["embedding.weight"]}
    weights["model.norm.weight"] = own["final_norm.weight"]
    if not config.tied:
        weights["lm_head.weight"] = own["output.weight"]
    for layer in range(config.n_layers):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        weights[theirs + "input_layernorm.weight"] = own[ours + "attention_norm.weight"]
        weights[theirs + "post_attention_layernorm.weight"] = own[ours + "feed_forward_norm.weight"]
        for kind in _kinds(config):
            q, k, v = own[f"{ours}attention.qkv.{kind}"].split(config.qkv_rows)
            weights[f"{theirs}self_attn.q_proj.{kind}"] = _to_half(q, config)
            weights[f"{theirs}self_attn.k_proj.{kind}"] = _to_half(k, config)
            weights[f"{theirs}self_attn.v_proj.{kind}"] = v
            weights[f"{theirs}self_attn.o_proj.{kind}"] = own[f"{ours}attention.output.{kind}"]
            gate, up = own[f"{ours}feed_forward.up.{kind}"].chunk(2)
            weights[f"{theirs}mlp.gate_proj.{kind}"] = gate
            weights[f"{theirs}mlp.up_proj.{kind}"] = up
            weights[f"{theirs}mlp.down_proj.{kind}"] = own[f"{ours}feed_forward.down.{kind}"]
    return {name: weight.contiguous().clone() for name, weight in weights.items()}


def _from_llama(config: ModelConfig, stored: Weights) -> Weights:
    weights = {"embedding.weight": stored.pop("model.embed_tokens.weight")}
    weights["final_norm.weight"] = stored.pop("model.norm.weight")
    head = stored.pop("lm_head.weight", None)
    if not config.tied:
        if head is None:
            raise KeyError("lm_head.weight")
        weights["output.weight"] = head
    for layer in range(config.n_layers):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        weights[ours + "attention_norm.weight"] = stored.pop(theirs + "input_layernorm.weight")
        weights[ours + "feed_forward_norm.weight"] = stored.pop(
            theirs + "post_attention_layernorm.weight"
        )
        for kind in _kinds(config):
            q = _from_half(stored.pop(f"{theirs}self_attn.q_proj.{kind}"), config)
            k = _from_half(stored.pop(f"{theirs}self_attn.k_proj.{kind}"), config)
            v = stored.pop(f"{theirs}self_attn.v_proj.{kind}")
            weights[f"{ours}attention.qkv.{kind}"] = torch.cat([q, k, v])
            weights[f"{ours}attention.output.{kind}"] = stored.pop(
                f"{theirs}self_attn.o_proj.{kind}"
            )
            gate = stored.pop(f"{theirs}mlp.gate_proj.{kind}")
            up = stored.pop(f"{theirs}mlp.up_proj.{kind}")
            weights[f"{ours}feed_forward.up.{kind}"] = torch.cat([gate, up])
            weights[f"{ours}feed_forward.down.{kind}"] = stored.pop(f"{theirs}mlp.down_proj.{kind}")
    _require_none_left(stored, ("rotary_emb.inv_freq",))
    return weights


def _from_gpt2(config: ModelConfig, stored: Weights) -> Weights:
    """GPT-2 keeps its matrices as (in, out) and prefixes names with "transformer." or not."""
    stored = {name.removeprefix("transformer."): weight for name, weight in stored.items()}
    head = stored.pop("lm_head.weight", None)
    names = {"wte.weight": "embedding.weight", "wpe.weight": "position_embedding.weight"}
    for layer in range(config.n_layers):
        ours, theirs = f"blocks.{layer}.", f"h.{layer}."
        for kind in ("weight", "bias"):
            names[f"{theirs}ln_1.{kind}"] = f"{ours}attention_norm.{kind}"
            names[f"{theirs}attn.c_attn.{kind}"] = f"{ours}attention.qkv.{kind}"
            names[f"{theirs}attn.c_proj.{kind}"] = f"{ours}attention.output.{kind}"
            names[f"{theirs}ln_2.{kind}"] = f"{ours}feed_forward_norm.{kind}"
            names[f"{theirs}mlp.c_fc.{kind}"] = f"{ours}feed_forward.up.{kind}"
            names[f"{theirs}mlp.c_proj.{kind}"] = f"{ours}feed_forward.down.{kind}"
    names |= {"ln_f.weight": "final_norm.weight", "ln_f.bias": "final_norm.bias"}
    weights = {}
    for theirs, our_name in names.items():
        weight = stored.pop(theirs)
        conv = ".c_" in theirs and weight.ndim == 2
        weights[our_name] = weight.T.contiguous() if conv else weight
    if not config.tied:
        if head is None:
            raise KeyError("lm_head.weight")
        weights["output.weight"] = head
    _require_none_left(stored, ("attn.bias", "attn.masked_bias"))
    return weights


def _llama_record(config: ModelConfig) -> Record:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.hidden_width,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "hidden_act": "silu",
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "rope_scaling": None,
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "tie_word_embeddings": config.tied,
        "initializer_range": config.embedding_std,
    }


def _llama_config(record: Record) -> ModelConfig:
    rope = record.get("rope_parameters") or record.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise SettingsError(f"RoPE of the type {rope} is not supported")
    if record.get("hidden_act", "silu") != "silu":
        raise SettingsError(f"hidden_act is {record['hidden_act']!r}, not silu")
    bias = record.get("attention_bias", False)
    if bias != record.get("mlp_bias", False):
        raise SettingsError("attention_bias and mlp_bias differ")
    heads = record["num_attention_heads"]
    return ModelConfig(
        vocab_size=record["vocab_size"],
        context=record["max_position_embeddings"],
        d_model=record["hidden_size"],
        n_layers=record["num_hidden_layers"],
        n_heads=heads,
        n_kv_heads=record.get("num_key_value_heads") or heads,
        d_head=record.get("head_dim") or record["hidden_size"] // heads,
        d_ff=record["intermediate_size"],
        norm_eps=record["rms_norm_eps"],
        rope_base=float(rope.get("rope_theta") or record.get("rope_theta") or 10_000.0),
        tied=record.get("tie_word_embeddings", False),
        bias=bias,
    )


def _gpt2_config(record: Record) -> ModelConfig:
    if record.get("activation_function", "gelu_new") != "gelu_new":
        raise SettingsError(f"activation_function is {record['activation_function']!r}")
    return ModelConfig(
        vocab_size=record["vocab_size"],
        context=record["n_positions"],
        d_model=record["n_embd"],
        n_layers=record["n_layer"],
        n_heads=record["n_head"],
        d_ff=record.get("n_inner") or 0,
        feed_forward="gelu",
        norm="layer",
        norm_eps=record["layer_norm_epsilon"],
        positions="learned",
        tied=record.get("tie_word_embeddings", True),
        bias=True,
    )


def _filled(config: ModelConfig, parts: Parts, weights: Weights, folder: Path) -> Transformer:
    with torch.device("meta"):
        model = Transformer(config, parts)
    expected = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    wrong = [
        f"{name} is {tuple(weight.shape)}, not {expected[name]}"
        for name, weight in weights.items()
        if tuple(weight.shape) != expected[name]
    ]
    if wrong:
        raise ExchangeError(f"{folder}: {'; '.join(wrong)}")
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(True)


def _stored_weights(folder: Path) -> Weights:
    names = [WEIGHTS_FILE]
    if not (folder / WEIGHTS_FILE).exists() and (folder / INDEX_FILE).exists():
        names = sorted(set(_json(folder / INDEX_FILE)["weight_map"].values()))
    weights: Weights = {}
    for name in names:
        try:
            weights |= load_file(folder / name)
        except (OSError, SafetensorError) as error:
            raise ExchangeError(f"{folder / name}: {error}") from error
    return weights


def _json(path: Path) -> Record:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExchangeError(f"{path}: {error}") from error
    if not isinstance(record, dict):
        raise ExchangeError(f"{path}: not a JSON object")
    return record


def _require_none_left(stored: Weights, ignored: tuple[str, ...]) -> None:
    left = [name for name in stored if not name.endswith(ignored)]
    if left:
        raise ExchangeError(f"weights without a place in the model: {', '.join(left)}")


def _kinds(config: ModelConfig) -> tuple[str, ...]:
    return ("weight", "bias") if config.bias else ("weight",)


def _to_half(rows: Tensor, config: ModelConfig) -> Tensor:
    return _reordered(rows, config, half_order(config.head_width))


def _from_half(rows: Tensor, config: ModelConfig) -> Tensor:
    return _reordered(rows, config, interleaved_order(config.head_width))


def _reordered(rows: Tensor, config: ModelConfig, order: Tensor) -> Tensor:
    """Each head's rows of a query or key matrix (or bias) in another pairing's order."""
    if config.rope_pairing == "half":
        return rows
    heads = rows.unflatten(0, (-1, config.head_width))  # type: ignore[no-untyped-call]
    result: Tensor = heads[:, order].flatten(0, 1)
    return result
