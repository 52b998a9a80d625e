"""The formula of attention without scores in memory, against its loops run through a cache."""

import pytest

from firsthand.llm.kernels.ladder import Shape
from firsthand.llm.kernels.memory_hierarchy.bounds import (
    attention_bound,
    best_flash_tile,
    pairs,
)
from firsthand.llm.kernels.memory_hierarchy.errors import TrafficError
from firsthand.llm.kernels.memory_hierarchy.hierarchy import CacheLevel
from firsthand.llm.kernels.memory_hierarchy.streams import simulate_flash
from firsthand.llm.kernels.memory_hierarchy.traffic import flash, keys_seen

SHAPE: Shape = {
    "batch": 2, "heads": 4, "kv_heads": 2, "queries": 256, "keys": 256, "width": 32
}  # fmt: skip
SIZES = [1024 * n for n in (1, 4, 8, 16, 24, 32, 48, 64, 96, 128)]


@pytest.mark.parametrize("change", [{}, {"queries": 64}, {"heads": 2}], ids=str)
@pytest.mark.parametrize("tile", [(16, 16), (32, 64), (64, 32), (128, 64), (64, 64)], ids=str)
def test_the_formula_holds(change: Shape, tile: tuple[int, int]) -> None:
    shape = {**SHAPE, **change}
    for size in SIZES:
        run = simulate_flash(shape, *tile, CacheLevel("c", size))
        assert flash(shape, *tile, size).bytes_moved == pytest.approx(run.bytes_moved, rel=0.06), (
            size
        )


def test_with_a_large_cache_each_number_moves_once() -> None:
    shape = {**SHAPE, "queries": 200, "keys": 230}
    q, k = 2 * 4 * 200 * 32 * 2, 2 * 2 * 230 * 32 * 2
    moved = flash(shape, 64, 32, 2**24)
    assert moved.read == q + 2 * k
    assert moved.written == q + 2 * 4 * 200 * 4
    assert simulate_flash(shape, 64, 32, CacheLevel("c", 2**24)).read == pytest.approx(
        moved.read, rel=0.01
    )


def test_with_no_cache_keys_come_for_each_tile_that_sees_them() -> None:
    shape = {**SHAPE, "queries": 128, "keys": 192}
    assert keys_seen(shape, 64, 32) == [128, 192]
    assert keys_seen(shape, 50, 32) == [128, 192, 192]
    key = 2 * 32 * 2
    q = 2 * 4 * 128 * 32 * 2
    assert flash(shape, 64, 32, 0).read == q + 8 * (128 + 192) * key


def test_traffic_falls_as_the_sram_grows() -> None:
    """Θ(N² d² / M): twice the SRAM, twice the rows, half the keys and values."""
    shape = {**SHAPE, "queries": 4096, "keys": 4096, "width": 64}
    q = flash(shape, 4096, 4096, 2**40).read - 2 * 2 * 2 * 4096 * 64 * 2
    small, large = (flash(shape, rows, 16, 0).read - q for rows in (64, 128))
    assert small / large == pytest.approx(2.0, rel=0.05)
    tiles = [best_flash_tile(shape, sram) for sram in (32 * 1024, 64 * 1024, 227 * 1024)]
    assert [rows for rows, _ in tiles] == sorted(rows for rows, _ in tiles)
    assert tiles[0][0] < tiles[-1][0]


def test_the_bound() -> None:
    seen = 2 * 4 * 256 * 257 // 2
    assert pairs(SHAPE) == seen
    once = 4 * (2 * 2 * 4 * 256 * 32 + 2 * 2 * 2 * 256 * 32)
    assert attention_bound(SHAPE, 2**30) == once
    long = {**SHAPE, "queries": 8192, "keys": 8192}
    numbers = 32**2
    assert attention_bound(long, 4 * numbers) == 4 * (pairs(long) * 32**2 // numbers - numbers)
    for size in (4 * 32**2, 2**14, 2**16):
        bound = attention_bound(SHAPE, size, 2)
        for rows in (16, 64):
            run = simulate_flash(SHAPE, rows, 16, CacheLevel("c", size))
            assert run.bytes_moved >= bound


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": 300}, "300 queries are more than 256 keys"),
        ({"kv_heads": 3}, "evenly"),
        ({"width": 0}, "width is at least 1"),
    ],
)
def test_shapes_that_cannot_be(change: Shape, message: str) -> None:
    shape = {**SHAPE, **change}
    with pytest.raises(TrafficError, match=message):
        flash(shape, 16, 16, 1024)
    with pytest.raises(TrafficError, match=message):
        simulate_flash(shape, 16, 16, CacheLevel("c", 1024))


def test_requests_that_cannot_be() -> None:
    with pytest.raises(TrafficError, match="lacks batch"):
        flash({"heads": 4, "kv_heads": 2, "queries": 4, "keys": 4, "width": 4}, 16, 16, 1024)
    with pytest.raises(TrafficError, match="rows is at least 1"):
        flash(SHAPE, 0, 16, 1024)
    with pytest.raises(TrafficError, match="cache"):
        flash(SHAPE, 16, 16, -1)
    with pytest.raises(TrafficError, match="bytes of SRAM"):
        best_flash_tile(SHAPE, 1024)
