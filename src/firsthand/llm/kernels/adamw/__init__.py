"""AdamW's update of a parameter p from its gradient g, in place: m and v are its moments.

m ← β₁ m + (1 - β₁) g and v ← β₂ v + (1 - β₂) g², then p ← p - η (m̂ / (√v̂ + ε) + λ p), where m̂ and
v̂ are m and v divided by 1 - β₁ᵗ and 1 - β₂ᵗ. Each element is by itself and little is computed on
it, so the time of a rung is the memory it moves. Source: Loshchilov & Hutter 2019, algorithm 2.
"""
