"""firsthand: build a small LLM with your own hands; only proof moves you on."""
