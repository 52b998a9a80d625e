"""Half precision in the forward and backward pass, and the scale that float16 needs.

bfloat16 has float32's exponents. float16 ends at 6e-8 below and 65,504 above, so the loss is
multiplied by a scale that keeps the gradients within: halved when one overflows, and doubled after
a long time without (Micikevicius et al. 2018, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from firsthand.llm.training.config import Precision

FIRST_SCALE = 2.0**16
LEAST_SCALE = 2.0**-14
PATIENCE = 2000

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Matrix products in `precision`; norms, softmax and losses stay in float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


class LossScaler:
    """The factor on the loss, and its rule. With any precision but float16 it is 1 and stays so."""

    def __init__(self, precision: Precision) -> None:
        self.active = precision == "float16"
        self.scale = FIRST_SCALE if self.active else 1.0
        self.good_steps = 0

    def unscale(self, gradients: Sequence[Tensor]) -> None:
        """Divide in place."""
        if self.active and gradients:
            torch._foreach_mul_(list(gradients), 1.0 / self.scale)

    def update(self, finite: bool) -> None:
        """Count a step: down after an overflow, up after `PATIENCE` steps without one."""
        if not self.active:
            return
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.scale /= 2
        elif self.good_steps % PATIENCE == 0:
            self.scale *= 2

    @property
    def exhausted(self) -> bool:
        """Whether the scale is so small that the gradients themselves must be infinite or NaN."""
        return not self.active or self.scale < LEAST_SCALE

    def state(self) -> dict[str, float]:
        """For a checkpoint."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def restore(self, state: dict[str, float]) -> None:
        """From a checkpoint."""
        self.scale, self.good_steps = float(state["scale"]), int(state["good_steps"])
