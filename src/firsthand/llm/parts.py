"""The values of the parts: the plain reference, and the fast one that training runs.

`REFERENCE` holds for each part the code a learner is asked to write, read in `llm/model`.
`FAST` replaces the parts whose kernels need less time or memory; both give the same numbers up to
rounding. The type stands in `llm/model/parts.py`, below all that these values come from.
"""

from __future__ import annotations

from dataclasses import replace

from firsthand.llm.kernels.attention.with_torch import sdpa
from firsthand.llm.kernels.cross_entropy.with_torch import (
    chunked_cross_entropy,
    linear_cross_entropy,
)
from firsthand.llm.kernels.norms.with_torch import fused_layer_norm, fused_rms_norm
from firsthand.llm.kernels.rope.with_torch import complex_rotate_interleaved, fused_rotate_half
from firsthand.llm.kernels.swiglu.with_torch import fused_gelu, fused_swiglu
from firsthand.llm.model import (
    attention,
    block,
    cache,
    embedding,
    feed_forward,
    initialization,
    norms,
    positions,
    visibility,
)
from firsthand.llm.model.parts import Parts

REFERENCE = Parts(
    embed=embedding.embed,
    vocabulary_logits=embedding.vocabulary_logits,
    cross_entropy=linear_cross_entropy,
    rms_norm=norms.rms_norm,
    layer_norm=norms.layer_norm,
    rotary_angles=positions.rotary_angles,
    rotate_half=positions.rotate_half,
    rotate_interleaved=positions.rotate_interleaved,
    sinusoidal_positions=positions.sinusoidal_positions,
    alibi_slopes=positions.alibi_slopes,
    visibility_bias=visibility.visibility_bias,
    split_heads=attention.split_heads,
    merge_heads=attention.merge_heads,
    attention=attention.attention,
    swiglu=feed_forward.swiglu,
    gelu=feed_forward.gelu,
    relu_squared=feed_forward.relu_squared,
    pre_norm=block.pre_norm,
    post_norm=block.post_norm,
    kv_cache=cache.KVCache,
    initial_deviation=initialization.initial_deviation,
)

FAST = replace(
    REFERENCE,
    cross_entropy=chunked_cross_entropy,
    rms_norm=fused_rms_norm,
    layer_norm=fused_layer_norm,
    rotate_half=fused_rotate_half,
    rotate_interleaved=complex_rotate_interleaved,
    attention=sdpa,
    swiglu=fused_swiglu,
    gelu=fused_gelu,
)
