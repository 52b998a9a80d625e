"""transformers' Llama of the same shape as one of our models, for the benchmarks beside it."""

from __future__ import annotations

from typing import Any

from firsthand.llm.model.config import ModelConfig


def transformers_llama(config: ModelConfig, attention: str, *, use_cache: bool = True) -> Any:
    """A LlamaForCausalLM with weights as its class draws them.

    Args:
        config: of a Llama shape: RMSNorm, RoPE, SwiGLU.
        attention: "eager" or "sdpa".
        use_cache: keep keys and values in a forward pass.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.hidden_width,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.kv_heads,
            max_position_embeddings=config.context,
            rms_norm_eps=config.norm_eps,
            tie_word_embeddings=config.tied,
            attn_implementation=attention,
            use_cache=use_cache,
        )
    )
