"""The output projection and cross-entropy as one operation, so that all logits never exist.

For hidden states h (tokens, width), the output matrix W (vocabulary, width) and a target t for
each token, the result is Σ -log softmax(h Wᵀ)[t] over the tokens whose target is not negative.
It is a sum, not a mean: the caller divides by the tokens of the whole batch, over all
micro-batches and ranks.
"""
