"""Causal attention with grouped heads: softmax(q kᵀ / √width + mask) v.

q is (batch, heads, queries, width); k and v are (batch, kv_heads, keys, width), where each key
head serves heads / kv_heads neighbouring query heads. The last query is aligned with the last
key: query i sees the keys up to i + keys - queries.
"""
