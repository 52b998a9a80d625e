"""Typed answers: what is asked for each kind of step, and how the answer is decided."""
