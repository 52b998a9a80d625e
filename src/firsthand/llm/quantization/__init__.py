"""Weights in 8 bits: schemes, calibration, what rounding costs, and the model that runs on it.

Read in this order: errors, schemes, settings, shapes, artefact, cache, transformer, calibration,
smoothing, gptq, quantizing, texts, comparison, loading. The first five need NumPy alone, so that an
engine can start without PyTorch.
"""
