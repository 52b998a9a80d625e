"""What can go wrong when a model is quantized or read back."""

from __future__ import annotations


class QuantizationError(ValueError):
    """Weights, text or files that cannot be quantized or used; names the file and the tensor."""
