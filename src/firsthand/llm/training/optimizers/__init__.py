"""AdamW and Muon: their updates as plain functions, and the optimizer that applies them.

Read in this order: adamw, newton_schulz, muon, optimizer.
"""
