"""Text from a model: from logits to a token, and token after token with the cache.

Read in this order: errors, sampling, filters, choosing, prompts, stopping, results, rows, batches,
speculation, decoding.
"""
