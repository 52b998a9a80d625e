"""From text to batches: documents become checked token shards, and shards become batches.

Read in this order: problems, files, documents, text_files, jsonl, tables, sources, embedded,
shards, manifest, batches, encoding, journal, split_writers, preparation, permutation, loading,
inspection; then records, packing, tasks and task_kinds for what comes after pretraining, and
engines for a corpus beyond one machine.
"""
