"""A decoder-only transformer, Llama-shaped by default, made of parts that can be exchanged.

Read in this order: settings, config, embedding, norms, positions, visibility, attention,
feed_forward, block, cache, parts, initialization, layers, transformer, hugging_face. Weights have
the shape (out_features, in_features), as in torch.nn.Linear.
"""
