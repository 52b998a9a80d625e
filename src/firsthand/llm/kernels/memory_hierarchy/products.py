"""Traffic of a matrix product in closed form: the triple loop, tiles, and the INT8 panels.

What the formulas ask and where they are wrong is in `traffic`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from firsthand.llm.kernels.int8_matmul.panels import PANEL, padded
from firsthand.llm.kernels.memory_hierarchy.hierarchy import LINE
from firsthand.llm.kernels.memory_hierarchy.traffic import FLOAT, Traffic, require

# Most rows of x that the INT8 panels take at a time.
TILE_ROWS = 8


@dataclass(frozen=True)
class Tile:
    """So many rows of x, rows of w and numbers along the sum."""

    m: int
    n: int
    k: int

    def within(self, m: int, n: int, k: int) -> Tile:
        """No larger than the product itself.

        Raises:
            TrafficError: a size below 1.
        """
        require(m=m, n=n, k=k, tile_m=self.m, tile_n=self.n, tile_k=self.k)
        return Tile(min(self.m, m), min(self.n, n), min(self.k, k))

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k}"


def product(
    m: int, n: int, k: int, cache: int, tile: Tile | None = None, line: int = LINE
) -> Traffic:
    """y = x wᵀ in float32 by loops over tiles and, inside a tile, over its elements.

    x is (m, k), w (n, k), y (m, n), each row after row; the loops run over tiles of m, n, k in this
    order, the last innermost, and so do those within a tile, which adds to y. No tile is the plain
    triple loop, a tile as large as the product.

    With tiles X (tm x tk), W (tn x tk) and Y (tm x tn), a row's piece s (tk) and rows r (k) in
    bytes, the loop comes back after the distance

    - 2 s + a line: to a row's piece of x for the next row of w. If that does not fit nothing does,
      and every element of y brings its two rows;
    - W + 2 s + a row of Y: to W for the next row of x. If not, W is read tm times;
    - Y + X + 2 W + s: to Y for the next piece of the sum. If not, y is read and written k / tk
      times. W counts twice: its old piece is used to the end of X, its new one from the start;
    - tm r + tn r + W + 2 Y: to x for the next columns. If not, x is read n / tn times;
    - n r + 2 tm r + tm rows of y: to w for the next rows, and one tm r less at both ends of a row
      of tiles. If not, w is read m / tm times.

    With tiles that stay and arrays that do not, about 4 (m n k / tm + m n k / tn + 2 m n) bytes
    move, least for tm = tn = √M and a short tk: Goto & van de Geijn 2008, section 4. A tile at
    the end may be smaller than the others, and fit where they do not.

    Args:
        m, n, k: rows of x, rows of w, width.
        cache: bytes.
        tile: clipped to the product.
        line: bytes.
    Raises:
        TrafficError: a size below 1, a negative cache.
    """
    return _loops(m, n, k, cache, tile, line).traffic()


def product_jumps(
    m: int, n: int, k: int, cache: int, tile: Tile | None = None, line: int = LINE
) -> list[int]:
    """The distances, in bytes, that `product` compared with the cache: near one it is unsure."""
    loops = _loops(m, n, k, cache, tile, line)
    loops.traffic()
    return sorted(loops.asked)


def _loops(m: int, n: int, k: int, cache: int, tile: Tile | None, line: int) -> _Loops:
    require(m=m, n=n, k=k, line=line, cache=cache + 1)
    return _Loops(m, n, k, cache, (tile or Tile(m, n, k)).within(m, n, k), line)


@dataclass
class _Loops:
    m: int
    n: int
    k: int
    cache: int
    tile: Tile
    line: int
    asked: set[int] = field(default_factory=set)

    def traffic(self) -> Traffic:
        tile, line = self.tile, self.line
        if not self.fits(2 * self.lines(tile.k) + line):
            # A piece of x, one of w and a line of y for each element and each piece of the sum.
            lines = self.m * self.n * self.deep_tiles * line
            return Traffic(round(2 * self.m * self.n * self.row(False)) + lines, lines)
        # Pieces that are no whole lines share some, which are still there if Y is.
        row = self.row(self.fits(self.to_y(tile.m, tile.n, tile.k)))
        x = w = y = 0.0
        for tall, tiles in _pieces(self.m, tile.m):
            visits = 1 + sum(
                count
                for wide, count in _steps(self.n, tile.n)
                if not self.fits(self.to_x(tall, wide))
            )
            x += tiles * tall * row * visits
            for wide, across in _pieces(self.n, tile.n):
                near = self.fits(self.to_y(tall, wide, tile.k))
                near = near or wide == self.n
                piece = wide * FLOAT if near else self.touched(wide, tile.n, self.n)
                visits = 1 + sum(
                    count
                    for deep, count in _steps(self.k, tile.k)
                    if not self.fits(self.to_y(tall, wide, deep))
                )
                y += tiles * across * tall * piece * visits
                back = self.block_rows(tall, tiles, wide, across)
                for deep, along in _pieces(self.k, tile.k):
                    stays = self.fits(self.to_tile(tall, wide, deep))
                    reads = back if stays else tiles * tall
                    w += across * wide * reads * row * (deep * along / self.k)
        return Traffic(round(x + w + y), round(y))

    def block_rows(self, tall: int, tiles: int, wide: int, across: int) -> float:
        """How often these tiles of w, which stay for one tile of rows, are read for all of them.

        The first block row reads them in any case; a smaller one at the end is never the first.
        """
        first = 1 if tall == self.tile.m else 0
        again = tiles - first
        at_ends = min(across, 2) / across if wide == self.tile.n else 1.0
        mean = (self.tile.m + tall) / 2
        if self.wide_tiles == 1:
            return first + again * (not self.fits(self.to_w(mean, True)))
        ends, middle = (not self.fits(self.to_w(mean, end)) for end in (True, False))
        return first + again * (at_ends * ends + (1 - at_ends) * middle)

    def to_tile(self, tall: int, wide: int, deep: int) -> float:
        if tall == 1:
            return 0
        piece = self.lines(deep)
        return wide * piece + 2 * piece + self.lines(wide)

    def to_y(self, tall: int, wide: int, deep: float) -> float:
        piece, y = self.lines(deep), tall * self.lines(wide)
        if tall == 1:
            # The columns of a line come one after the other.
            return y + max(0, wide - self.line // FLOAT) * piece + 2 * piece
        return y + (tall + 2 * wide + 1) * piece

    def to_x(self, tall: int, wide: float) -> float:
        row, piece = self.lines(self.k), self.lines(self.tile.k)
        y = tall * self.lines(wide) * (2 if self.deep_tiles > 1 else 1)
        if tall == 1:
            return row + wide * (row - piece) + y
        return (tall + wide) * row + wide * piece + y

    def to_w(self, tall: float, end: bool) -> float:
        row, piece = self.lines(self.k), self.lines(self.tile.k)
        y_tile = tall * self.lines(self.tile.n)
        if self.wide_tiles > 1:
            half = (self.deep_tiles - 1) / (2 * self.deep_tiles)
            x = tall * row * (1 + half if end else 2)
            y = tall * self.lines(self.n) + (y_tile if self.deep_tiles > 1 else 0)
        elif self.deep_tiles > 1:
            x, y = tall * (row - piece), min(2, self.deep_tiles - 1) * y_tile
        else:
            x, y = 2 * piece, 2 * self.lines(self.n)
        return self.n * row + x + y

    @property
    def wide_tiles(self) -> int:
        return -(-self.n // self.tile.n)

    @property
    def deep_tiles(self) -> int:
        return -(-self.k // self.tile.k)

    def fits(self, distance: float) -> bool:
        if distance:
            self.asked.add(int(distance))
        return distance <= self.cache

    def lines(self, numbers: float) -> float:
        """Bytes of so many float32 in whole lines."""
        return math.ceil(numbers * FLOAT / self.line) * self.line

    def touched(self, piece: int, usual: int, whole: int) -> float:
        """Bytes of the lines under a piece of a row, on average over where rows begin."""
        size = piece * FLOAT
        return size + self.line - math.gcd(self.line, size, usual * FLOAT, whole * FLOAT)

    def row(self, shared: bool) -> float:
        if shared:
            return self.k * FLOAT
        return sum(
            count * self.touched(piece, self.tile.k, self.k)
            for piece, count in _pieces(self.k, self.tile.k)
        )


def panel_product(m: int, n: int, k: int, cache: int, line: int = LINE) -> Traffic:
    """The Numba rung of the INT8 product: int16 x (m, k), int8 w (n, k), float32 y (m, n).

    A panel of PANEL rows of w waits in the cache while all rows of x pass in tiles of at most
    TILE_ROWS, as even as can be (`int8_matmul.panels`); a tile goes over the panel row by row. With
    X the bytes of a tile of x, the loop comes back after the distance

    - X + a row of w + a line of y for each row: to the tile for the next row of w. If that does not
      fit nothing does;
    - PANEL k + 2 X + the panel's columns of a tile of y: to the panel for the next tile. If not, w
      is read once for each tile;
    - 2 m k + 2 PANEL k + the panel's columns of y: to x for the next panel, a panel less for the
      first tile and the last. If not, x is read n / PANEL times. One tile is always there.

    Rows are padded to a multiple of 64; the copy that this takes is not counted. The kernel cuts
    long rows into pieces for the innermost cache, which changes nothing behind a cache that holds a
    tile of x.

    Raises:
        TrafficError: a size below 1, a negative cache.
    """
    require(m=m, n=n, k=k, line=line, cache=cache + 1)
    k = padded(k)
    w, y = n * k, m * n * FLOAT
    panels, tiles = -(-n // PANEL), -(-m // TILE_ROWS)
    tall = m / tiles
    x_tile, panel, columns = 2 * k * tall, min(n, PANEL) * k, min(n, PANEL) * FLOAT
    if x_tile + k + tall * line > cache:
        # Each row of w brings the tile of x, and each number of y its line.
        lines = m * n * line
        return Traffic(2 * m * k * n + w * tiles + lines, lines)
    times_w = 1 if panel + 2 * x_tile + tall * columns <= cache else tiles
    ends = tiles > 1 and 2 * m * k + panel + m * columns > cache
    middle = tiles > 1 and 2 * m * k + 2 * panel + m * columns > cache
    at_ends = min(2, tiles) / tiles
    again = (panels - 1) * (at_ends * ends + (1 - at_ends) * middle)
    return Traffic(round(2 * m * k * (1 + again)) + w * times_w + y, y)


def _pieces(length: int, piece: int) -> list[tuple[int, int]]:
    """How long the pieces are, and how many: whole ones, and one that is left."""
    whole, rest = divmod(length, piece)
    return [(piece, whole)] * (whole > 0) + [(rest, 1)] * (rest > 0)


def _steps(length: int, piece: int) -> list[tuple[float, int]]:
    """From one piece to the next: how long the two are on average, and how many such steps."""
    whole, rest = divmod(length, piece)
    return [(piece, whole - 1)] * (whole > 1) + [((piece + rest) / 2, 1)] * (rest > 0 < whole)
