"""Memory, FLOPs and time: measured on this machine, predicted for a model, and compared.

The machine is read in this order: errors, processor, records, threads, rounds, bandwidth,
gpu_bandwidth, peaks, overheads, ceilings, measurement, roofline, machine_tables, machine_page.

A training step is taken apart in operands, tracer, layout; a broken one is told by flow, breakages,
signatures, flow_gallery, gallery_page.

Memory and work of a config are predicted in lifetimes, part_memory, attention_memory,
optimizer_memory, step_memory, ledger, operations; memory is measured in allocations.

A model is audited by subject, footprint, throughput, engine_stages, torch_stages, waterfall,
engine_waterfalls, quality, energy, full; shown by bars, audit_tables, page, comparison.
"""
