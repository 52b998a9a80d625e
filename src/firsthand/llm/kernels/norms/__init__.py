"""RMSNorm and LayerNorm over the last axis, with their gradients."""
