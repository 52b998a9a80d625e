"""softmax over the last axis: exp(x - max) / Σ exp(x - max), and its gradient p (g - Σ p g)."""
