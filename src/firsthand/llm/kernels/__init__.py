"""The hot operations of the model as ladders: one folder per operation, one rung per version.

In each folder `with_numpy` shows the arithmetic, forward and backward, `with_torch` the versions
that the model runs, and `ladder` binds both to an oracle in float64 and to a count of FLOPs and
bytes. `ladders.LADDERS` lists them; `timing.time_ladder` measures one.
"""
