"""The values of the parts: the plain reference, and the fast one that training runs.

`REFERENCE` holds for each part the code a learner is asked to write, read in `llm/model`.
`FAST` replaces the parts whose kernels need less time or memory: compiled loops on a CPU, Triton's
kernels on a GPU, PyTorch's where neither fits. All give the same numbers up to rounding. The type
stands in `llm/model/parts.py`, below all that these values come from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

from torch import Tensor

from firsthand.llm.alignment import advantages, dpo, logprobs, lora, ppo
from firsthand.llm.generation import filters, speculation
from firsthand.llm.kernels.adamw import with_numba as fast_adamw
from firsthand.llm.kernels.adamw import with_triton as gpu_adamw
from firsthand.llm.kernels.attention import with_numba as fast_attention
from firsthand.llm.kernels.attention import with_triton as gpu_attention
from firsthand.llm.kernels.cross_entropy import with_numba as fast_cross_entropy
from firsthand.llm.kernels.cross_entropy import with_triton as gpu_cross_entropy
from firsthand.llm.kernels.cross_entropy.with_torch import linear_cross_entropy
from firsthand.llm.kernels.norms import with_numba as fast_norms
from firsthand.llm.kernels.norms import with_triton as gpu_norms
from firsthand.llm.kernels.norms.with_torch import fused_layer_norm
from firsthand.llm.kernels.rope import with_numba as fast_rope
from firsthand.llm.kernels.rope import with_triton as gpu_rope
from firsthand.llm.kernels.swiglu import with_numba as fast_swiglu
from firsthand.llm.kernels.swiglu import with_triton as gpu_swiglu
from firsthand.llm.kernels.swiglu.with_torch import fused_gelu, fused_relu_squared
from firsthand.llm.model import (
    attention,
    block,
    cache,
    embedding,
    feed_forward,
    initialization,
    neighbours,
    norms,
    positions,
    visibility,
)
from firsthand.llm.model.parts import Parts
from firsthand.llm.training import averaging, clipping, schedules
from firsthand.llm.training.optimizers import adamw, newton_schulz


def _by_device(on_cpu: Callable[..., Any], on_gpu: Callable[..., Any]) -> Callable[..., Any]:
    """The one where the first argument is, a tensor or a list of them; named as `on_cpu`."""

    @wraps(on_cpu)
    def part(first: Any, *others: Any, **named: Any) -> Any:
        tensor = first if isinstance(first, Tensor) else next(iter(first), None)
        chosen = on_gpu if tensor is not None and tensor.is_cuda else on_cpu
        return chosen(first, *others, **named)

    return part


REFERENCE = Parts(
    embed=embedding.embed,
    vocabulary_logits=embedding.vocabulary_logits,
    cross_entropy=linear_cross_entropy,
    rms_norm=norms.rms_norm,
    layer_norm=norms.layer_norm,
    rotary_angles=positions.rotary_angles,
    rotate_half=positions.rotate_half,
    rotate_interleaved=positions.rotate_interleaved,
    mix_neighbours=neighbours.mix_neighbours,
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
    penalize_repetition=filters.penalize_repetition,
    scale_by_temperature=filters.scale_by_temperature,
    keep_top_k=filters.keep_top_k,
    keep_top_p=filters.keep_top_p,
    keep_min_p=filters.keep_min_p,
    draw=filters.draw,
    accept_drafted=speculation.accept_drafted,
    adamw=adamw.adamw,
    orthogonalize=newton_schulz.orthogonalize,
    cosine_schedule=schedules.cosine_schedule,
    wsd_schedule=schedules.wsd_schedule,
    clip_gradients=clipping.clip_gradients,
    average_weights=averaging.average_weights,
    token_logprobs=logprobs.whole_token_logprobs,
    lora_forward=lora.lora_forward,
    dpo_loss=dpo.dpo_loss,
    gae=advantages.gae,
    clipped_objective=ppo.clipped_objective,
    relative_advantages=advantages.relative_advantages,
)

FAST = replace(
    REFERENCE,
    cross_entropy=_by_device(
        fast_cross_entropy.chunked_cross_entropy, gpu_cross_entropy.chunked_cross_entropy
    ),
    rms_norm=_by_device(fast_norms.rms_norm, gpu_norms.rms_norm),
    layer_norm=fused_layer_norm,
    rotate_half=_by_device(fast_rope.rotate_half, gpu_rope.rotate_half),
    rotate_interleaved=_by_device(fast_rope.rotate_interleaved, gpu_rope.rotate_interleaved),
    attention=_by_device(fast_attention.attention, gpu_attention.attention),
    swiglu=_by_device(fast_swiglu.swiglu, gpu_swiglu.swiglu),
    gelu=fused_gelu,
    relu_squared=fused_relu_squared,
    adamw=_by_device(fast_adamw.adamw, gpu_adamw.adamw),
    orthogonalize=newton_schulz.gram_orthogonalize,
    token_logprobs=logprobs.token_logprobs,
)
