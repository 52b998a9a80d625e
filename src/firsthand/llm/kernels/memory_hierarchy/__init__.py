"""What an operation moves between a cache and the memory behind it: a model, and a simulator.

The model says it in formulas, the simulator by running the same loops through a cache, the
processor's counters by counting, where a machine lets them be read. One level is looked at at a
time: the last-level cache and DRAM, or a multiprocessor's SRAM or the L2 cache and HBM.
"""
