"""SwiGLU: silu(gate) · up, where silu(z) = z σ(z)."""
