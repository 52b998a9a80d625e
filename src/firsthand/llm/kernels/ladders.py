"""All ladders by name."""

from __future__ import annotations

from firsthand.llm.kernels.adamw.ladder import LADDER as ADAMW
from firsthand.llm.kernels.attention.ladder import LADDER as ATTENTION
from firsthand.llm.kernels.cross_entropy.ladder import LADDER as CROSS_ENTROPY
from firsthand.llm.kernels.int8_matmul.ladder import LADDER as INT8_MATMUL
from firsthand.llm.kernels.ladder import Ladder
from firsthand.llm.kernels.norms.ladder import LAYER_LADDER, RMS_LADDER
from firsthand.llm.kernels.rope.ladder import HALF_LADDER, INTERLEAVED_LADDER
from firsthand.llm.kernels.softmax.ladder import LADDER as SOFTMAX
from firsthand.llm.kernels.swiglu.ladder import LADDER as SWIGLU

LADDERS: dict[str, Ladder] = {
    ladder.name: ladder
    for ladder in (
        SOFTMAX,
        RMS_LADDER,
        LAYER_LADDER,
        HALF_LADDER,
        INTERLEAVED_LADDER,
        SWIGLU,
        CROSS_ENTROPY,
        ATTENTION,
        ADAMW,
        INT8_MATMUL,
    )
}
