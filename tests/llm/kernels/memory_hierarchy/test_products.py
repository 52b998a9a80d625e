"""The formulas of a product against the same loops run through a cache."""

import itertools

import pytest

from firsthand.llm.kernels.int8_matmul import panels
from firsthand.llm.kernels.memory_hierarchy.bounds import (
    TILE_SIZES,
    best_product_tile,
    product_bound,
)
from firsthand.llm.kernels.memory_hierarchy.errors import TrafficError
from firsthand.llm.kernels.memory_hierarchy.hierarchy import CacheLevel
from firsthand.llm.kernels.memory_hierarchy.products import (
    TILE_ROWS,
    Tile,
    panel_product,
    product,
    product_jumps,
)
from firsthand.llm.kernels.memory_hierarchy.streams import (
    simulate_panel_product,
    simulate_product,
)
from firsthand.llm.kernels.memory_hierarchy.traffic import Traffic

SIZES = [1024 * n for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 96, 128)]
TILES = [
    None,
    Tile(8, 8, 16),
    Tile(16, 16, 16),
    Tile(32, 32, 16),
    Tile(16, 16, 64),
    Tile(32, 16, 32),
    Tile(1, 16, 96),
    Tile(64, 48, 16),
    Tile(96, 8, 32),
    Tile(16, 64, 64),
]
# How near to a jump the formulas say nothing, and how well they do elsewhere.
NEAR, WITHIN = 0.15, 0.10


def far_from_a_jump(shape: tuple[int, int, int], size: int, tile: Tile | None) -> bool:
    jumps = product_jumps(*shape, size, tile)
    return all(abs(size / jump - 1) > NEAR for jump in jumps)


@pytest.mark.parametrize("shape", [(96, 80, 112), (64, 64, 64), (128, 48, 96)])
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_far_from_a_jump_the_formula_holds(shape: tuple[int, int, int], tile: Tile | None) -> None:
    sizes = [size for size in SIZES if far_from_a_jump(shape, size, tile)]
    assert len(sizes) >= 5
    for size in sizes:
        run = simulate_product(*shape, CacheLevel("c", size), tile)
        assert product(*shape, size, tile).bytes_moved == pytest.approx(
            run.bytes_moved, rel=WITHIN
        ), size


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_rows_that_do_not_begin_on_a_line(tile: Tile | None) -> None:
    shape = (37, 50, 64)
    for size in SIZES:
        if far_from_a_jump(shape, size, tile):
            run = simulate_product(*shape, CacheLevel("c", size), tile)
            assert product(*shape, size, tile).bytes_moved == pytest.approx(
                run.bytes_moved, rel=0.16
            ), size


def test_the_jump_is_where_it_is_said_to_be() -> None:
    # Y + X + 2 W + s of a tile of 16 x 16 x 16: 1024 + 1024 + 2 · 1024 + 64 bytes.
    shape, tile, jump = (64, 64, 64), Tile(16, 16, 16), 4160
    assert jump in product_jumps(*shape, 2**12, tile)
    below, above = (
        simulate_product(*shape, CacheLevel("c", jump * part // 10 // 64 * 64), tile)
        for part in (7, 12)
    )
    once = 64 * 64 * 4
    assert below.written == pytest.approx(4 * once, rel=0.1)  # once for each piece of the sum
    assert above.written == once
    assert product(*shape, jump - 64, tile).written == 4 * once
    assert product(*shape, jump, tile).written == once


def test_rows_a_power_of_two_apart_meet_in_few_sets() -> None:
    """Where the formulas break: 8 ways, 256 rows of 1 KiB; not with rows of 21 lines."""
    level, tile = CacheLevel("L1", 2**15, 64, 8), Tile(32, 32, 32)
    even = simulate_product(256, 256, 256, level, tile)
    assert even.bytes_moved > 5 * product(256, 256, 256, level.size, tile).bytes_moved
    odd = simulate_product(96, 240, 336, level, tile)
    assert product(96, 240, 336, level.size, tile).bytes_moved == pytest.approx(
        odd.bytes_moved, rel=WITHIN
    )


def test_the_triple_loop_by_hand() -> None:
    m, n, k = 32, 64, 128
    once = Traffic(4 * (m * k + n * k + m * n), 4 * m * n)
    assert product(m, n, k, 2**20) == once
    # w does not fit, two rows do: w comes once for each row of x.
    assert product(m, n, k, 2**13) == Traffic(once.read + 4 * (m - 1) * n * k, once.written)
    # Nothing fits: two rows and a line for each element.
    assert product(m, n, k, 512) == Traffic(m * n * (8 * k + 64), 64 * m * n)
    for size in (2**20, 2**13, 512):
        assert simulate_product(m, n, k, CacheLevel("c", size)) == product(m, n, k, size)


@pytest.mark.parametrize(
    "shape",
    [(1, 96, 256), (4, 96, 256), (64, 256, 128), (33, 128, 192), (40, 128, 192), (16, 64, 768)],
)
def test_panels(shape: tuple[int, int, int]) -> None:
    # Tiles of 6 and of 7 rows: some fit into 3 KiB, or leave room for the panel in 12, some do not.
    jumps = (3072, 12288) if shape[0] == 33 else ()
    for size in (size for size in SIZES if size not in jumps):
        run = simulate_panel_product(*shape, CacheLevel("c", size))
        assert panel_product(*shape, size).bytes_moved == pytest.approx(
            run.bytes_moved, rel=0.06
        ), size


def test_a_panel_that_stays_reads_the_weights_once() -> None:
    assert TILE_ROWS == panels.SUMS
    m, n, k = 64, 512, 768
    panel, tile = panels.PANEL * k, 2 * k * TILE_ROWS
    stays = panel_product(m, n, k, panel + 3 * tile)
    goes = panel_product(m, n, k, panel)
    assert goes.read - stays.read == (m // TILE_ROWS - 1) * n * k
    for size, moved in ((panel + 3 * tile, stays), (panel, goes)):
        run = simulate_panel_product(m, n, k, CacheLevel("c", size))
        assert moved.bytes_moved == pytest.approx(run.bytes_moved, rel=0.06)


@pytest.mark.parametrize("size", [2048, 8192, 16384])
def test_no_order_goes_below_the_bound(size: int) -> None:
    shape = (96, 80, 112)
    bound = product_bound(*shape, size)
    for tile in TILES:
        assert simulate_product(*shape, CacheLevel("c", size), tile).bytes_moved >= bound
    assert product_bound(*shape, 2**30) == 4 * (96 * 112 + 80 * 112 + 96 * 80)
    assert product_bound(1024, 1024, 1024, 2**16) > 4 * 3 * 1024**2


@pytest.mark.parametrize("size", [4096, 16384])
def test_the_best_tile_is_near_the_best_that_is_run(size: int) -> None:
    shape, level = (96, 96, 112), CacheLevel("c", size)
    sides = [side for side in TILE_SIZES if side <= 96]
    tiles = [Tile(tall, wide, 16) for tall, wide in itertools.product(sides, sides)]
    best = min(simulate_product(*shape, level, tile).bytes_moved for tile in tiles)
    chosen = best_product_tile(*shape, size)
    assert simulate_product(*shape, level, chosen).bytes_moved <= 1.2 * best


def test_products_that_cannot_be() -> None:
    for call in (product, panel_product):
        with pytest.raises(TrafficError, match="m is at least 1"):
            call(0, 4, 4, 1024)
        with pytest.raises(TrafficError, match="cache"):
            call(4, 4, 4, -1)
    with pytest.raises(TrafficError, match="tile_n is at least 1, not 0"):
        product(4, 4, 4, 1024, Tile(1, 0, 1))
    with pytest.raises(TrafficError, match="too much to run"):
        simulate_product(10**5, 10**5, 10**4, CacheLevel("c", 1024))
    assert product(4, 4, 4, 1024, Tile(99, 99, 99)) == product(4, 4, 4, 1024)
