"""From a model and token shards to trained weights.

Read in this order: config, schedules, clipping, optimizers, averaging, task, loop, checkpoints,
journal, pretraining.
"""
