from dataclasses import replace

import pytest
import torch

from firsthand.llm.kernels.ceilings import Ceilings, measure_ceilings
from firsthand.llm.kernels.ladders import LADDERS
from firsthand.llm.kernels.timing import time_ladder

torch.set_num_threads(1)
SLOW = Ceilings(bandwidth=1e3, flop_rate=1e12, threads=1)


def test_ceilings_are_measured() -> None:
    ceilings = measure_ceilings(copy_bytes=2**22, side=64, runs=2)
    assert ceilings.bandwidth > 1e6
    assert ceilings.flop_rate > 1e6
    assert ceilings.threads == torch.get_num_threads()
    with pytest.raises(ValueError, match="too small"):
        measure_ceilings(side=0)


@pytest.mark.parametrize("backward", [False, True])
def test_rows(backward: bool) -> None:
    ladder = LADDERS["softmax"]
    shape = {"rows": 8, "columns": 32}
    rows = time_ladder(ladder, SLOW, shape=shape, backward=backward, runs=3)
    assert [row.rung for row in rows] == [rung.name for rung in ladder.runnable]
    for row in rows:
        assert 0 < row.fastest <= row.seconds <= row.slowest
        assert row.flops == ladder.flops.of(shape, backward=backward)
        least = ladder.bytes_moved.of(shape, backward=backward) / SLOW.bandwidth
        assert row.ceiling_share == pytest.approx(least / row.seconds)
        assert row.bandwidth * row.seconds == pytest.approx(row.bytes_moved)
        assert row.flop_rate * row.seconds == pytest.approx(row.flops)


def test_an_update_has_no_backward_pass() -> None:
    rows = time_ladder(LADDERS["adamw"], SLOW, shape={"elements": 64}, backward=True, runs=1)
    assert [row.rung for row in rows] == [rung.name for rung in LADDERS["adamw"].runnable]
    assert not any(row.backward for row in rows)


def test_a_rung_that_does_not_run_here_is_left_out() -> None:
    ladder = LADDERS["softmax"]
    absent = replace(ladder.rungs[-1], name="absent", device=lambda: "", needs="needs a GPU")
    longer = replace(ladder, rungs=(*ladder.rungs, absent))
    rows = time_ladder(longer, SLOW, shape={"rows": 2, "columns": 8}, runs=1)
    assert [row.rung for row in rows] == [rung.name for rung in ladder.rungs]
    with pytest.raises(RuntimeError, match="absent does not run here: it needs a GPU"):
        absent.prepare({})


def test_the_ceiling_that_binds() -> None:
    compute_bound = Ceilings(bandwidth=1e12, flop_rate=1e3, threads=1)
    ladder = LADDERS["softmax"]
    (row, *_) = time_ladder(ladder, compute_bound, shape={"rows": 2, "columns": 8}, runs=1)
    flops = ladder.flops.of({"rows": 2, "columns": 8}, backward=True)
    assert row.ceiling_share == pytest.approx(flops / 1e3 / row.seconds)


def test_bad_requests() -> None:
    with pytest.raises(ValueError, match="0 runs"):
        time_ladder(LADDERS["softmax"], SLOW, runs=0)
    with pytest.raises(ValueError, match="sizes"):
        time_ladder(LADDERS["softmax"], SLOW, shape={"cols": 3})
