"""The CPU engine's compiled step: packed weights, one crew of threads, no allocation per token."""
