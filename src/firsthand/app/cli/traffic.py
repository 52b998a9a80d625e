"""`firsthand kernels traffic`: bytes that cross the edge of a cache, modelled and simulated."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from firsthand.app.cli.stack import one_sentence
from firsthand.course.errors import FirsthandError

if TYPE_CHECKING:
    from firsthand.llm.kernels.memory_hierarchy.hierarchy import CacheLevel
    from firsthand.llm.kernels.memory_hierarchy.products import Tile
    from firsthand.llm.kernels.memory_hierarchy.table import Row

OPERATIONS = ("attention", "matmul")


def kernels_traffic(
    operation: Annotated[str, typer.Argument(help="attention or matmul.")] = "attention",
    cache: Annotated[
        str,
        typer.Option(help="Its size, e.g. 512K or 32M. Default: this machine's last-level cache."),
    ] = "",
    ways: Annotated[
        int, typer.Option(help="Of a cache given by --cache; 0: a line may lie anywhere.")
    ] = 16,
    tile: Annotated[
        Optional[list[str]],  # noqa: UP045  (typer reads it at run time)
        typer.Option(help="64 for a square, or MxNxK for a matmul. Repeatable."),
    ] = None,
    size: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="A size of the operation, e.g. --size keys=1024 or m=64. Repeatable."),
    ] = None,
    simulate: Annotated[bool, typer.Option(help="Run the loops through a simulated cache.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, no table.")] = False,
) -> None:
    """Bytes between a cache and memory: each rung and tile, against the least there can be.

    The model is formulas, the simulation a cache that the same loops run through; forward pass, one
    thread. Near a size where a tile just fits the two part.
    """
    with one_sentence():
        from firsthand.llm.kernels.memory_hierarchy import table

        if operation not in OPERATIONS:
            raise FirsthandError(f"Traffic is of attention or matmul, not of {operation}.")
        level = _level(cache, ways)
        shape = dict(table.ATTENTION_SHAPE if operation == "attention" else table.PRODUCT_SHAPE)
        shape |= _sizes(size or [], shape)
        tiles = [_tile(text, operation) for text in tile or []]
        if operation == "attention":
            blocks = [one.m for one in tiles] or table.BLOCKS
            rows = table.attention_rows(shape, level, blocks=blocks, simulate=simulate)
        else:
            rows = table.product_rows(shape, level, tiles=tiles or None, simulate=simulate)
    if as_json:
        print(json.dumps(_record(operation, shape, level, rows)))
    else:
        _print(operation, shape, level, rows)


def _level(cache: str, ways: int) -> CacheLevel:
    from firsthand.llm.kernels.memory_hierarchy.hierarchy import CacheLevel, bytes_of, last_level

    if cache:
        return CacheLevel("the cache", bytes_of(cache), ways=ways)
    found = last_level()
    if found is None:
        raise FirsthandError(
            "This system does not say how large its last-level cache is. Give it: --cache 32M"
        )
    return found


def _sizes(texts: list[str], known: dict[str, int]) -> dict[str, int]:
    from firsthand.app.cli.kernels import sizes_of

    sizes = sizes_of(texts)
    for name in sizes:
        if name not in known:
            raise FirsthandError(f"There is no size {name}; there are {', '.join(known)}.")
    return sizes


def _tile(text: str, operation: str) -> Tile:
    from firsthand.llm.kernels.memory_hierarchy.products import Tile

    sizes = [int(number) for number in re.findall(r"\d+", text)]
    square = re.fullmatch(r"\d+", text)
    cuboid = re.fullmatch(r"\d+x\d+x\d+", text) and operation == "matmul"
    if not (square or cuboid) or min(sizes) < 1:
        written = "64 or 64x64x16" if operation == "matmul" else "64"
        raise FirsthandError(f"A tile of {operation} is written as {written}; this is {text}.")
    return Tile(*(sizes if cuboid else sizes * 3))


def _size(size: int) -> str:
    """Bytes as a person would write them."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 2**power:
            return f"{size / 2**power:g} {unit}"
    return f"{size} bytes"


def _record(
    operation: str, shape: dict[str, int], level: CacheLevel, rows: list[Row]
) -> dict[str, object]:
    from dataclasses import asdict

    return {
        "operation": operation,
        "shape": shape,
        "cache": asdict(level),
        "rows": [asdict(row) | {"intensity": row.intensity} for row in rows],
    }


def _print(operation: str, shape: dict[str, int], level: CacheLevel, rows: list[Row]) -> None:
    from rich.table import Table

    from firsthand.app.cli.terminal import console

    out = console()
    sizes = ", ".join(f"{name} {n}" for name, n in shape.items())
    ways = f"{level.ways} ways" if level.ways else "any place for a line"
    out.print(
        f"[bold]{operation}[/], forward: {sizes}\n"
        f"{level.name}: {_size(level.size)}, lines of {level.line} bytes, {ways}. "
        "MB read from the memory behind it and written to it.",
        highlight=False,
    )
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for column in ("rung", "tile"):
        table.add_column(column, no_wrap=True)
    for column in ("read", "write", "model", "simulated", "least", "FLOP/B"):
        table.add_column(column, justify="right")
    for row in rows:
        run = "" if row.simulated is None else f"{row.simulated.bytes_moved / 1e6:.2f}"
        table.add_row(
            row.rung,
            row.tile,
            f"{row.modelled.read / 1e6:.2f}",
            f"{row.modelled.written / 1e6:.2f}",
            f"{row.modelled.bytes_moved / 1e6:.2f}",
            run,
            f"{row.bound / 1e6:.2f}",
            f"{row.intensity:.1f}",
        )
    out.print(table)
