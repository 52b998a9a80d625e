"""What `firsthand quantize` is asked to do, as one frozen record."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from firsthand.llm.model.settings import Record, SettingsError, to_record
from firsthand.llm.quantization.schemes import Scheme

Activations = Literal["dynamic", "none"]
CacheKind = Literal["int8", "float32"]
Method = Literal["nearest", "gptq"]


@dataclass(frozen=True, kw_only=True)
class QuantizationSettings:
    """Every choice that decides the integers of a model, and how it runs on them.

    Attributes:
        scheme: of the matrices.
        activations: "dynamic" rounds the input of each product to integers, row by row; "none"
            leaves it and multiplies by the numbers that the weights stand for.
        cache: of keys and values: "int8" with a scale for each token and head, or "float32".
        method: "nearest" rounds each weight by itself, "gptq" lets later weights of a row take up
            the error of earlier ones (see `quantization.gptq`).
        smoothing: 0 is off; above 0 the α of SmoothQuant (see `quantization.smoothing`). The
            percentile of the scheme then holds for the activations of a channel too.
        damping: GPTQ adds this share of the mean of the Hessian's diagonal to it.
        activation_order: GPTQ takes the columns with the largest inputs first.
        calibration_tokens: of text for GPTQ, smoothing and the table of errors.
    """

    scheme: Scheme = field(default_factory=Scheme)
    activations: Activations = "dynamic"
    cache: CacheKind = "int8"
    method: Method = "nearest"
    smoothing: float = 0.0
    damping: float = 0.01
    activation_order: bool = False
    calibration_tokens: int = 8192

    def __post_init__(self) -> None:
        if not 0.0 <= self.smoothing <= 1.0:
            raise SettingsError(f"smoothing is from 0 to 1; not {self.smoothing:g}")
        if not 0.0 < self.damping < math.inf:
            raise SettingsError(f"damping is above 0 and finite; not {self.damping:g}")
        if self.calibration_tokens < 1:
            raise SettingsError(f"calibration_tokens is at least 1; not {self.calibration_tokens}")

    @property
    def calibrates(self) -> bool:
        """Whether the integers depend on text."""
        return self.method == "gptq" or self.smoothing > 0

    def to_record(self) -> Record:
        """The fields by name; `model.settings.build` is its inverse."""
        return to_record(self)
