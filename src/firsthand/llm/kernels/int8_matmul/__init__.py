"""INT8 weights times dynamically quantized activations: exact integer sums, scaled once."""
