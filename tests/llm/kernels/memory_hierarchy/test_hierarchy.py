from pathlib import Path

import pytest

from firsthand.llm.kernels.memory_hierarchy.errors import TrafficError
from firsthand.llm.kernels.memory_hierarchy.hierarchy import (
    CacheLevel,
    bytes_of,
    cpu_levels,
    gpu_levels,
    last_level,
)


def described(folder: Path, number: int, **fields: str) -> None:
    entry = folder / f"index{number}"
    entry.mkdir(parents=True)
    for name, text in fields.items():
        (entry / name).write_text(text + "\n", encoding="ascii")


def cache_fields(level: str, kind: str, size: str, ways: str) -> dict[str, str]:
    return {
        "level": level,
        "type": kind,
        "size": size,
        "coherency_line_size": "64",
        "ways_of_associativity": ways,
    }


def test_the_system_describes_its_data_caches(tmp_path: Path) -> None:
    described(tmp_path, 0, **cache_fields("1", "Data", "48K", "12"), shared_cpu_list="0")
    described(tmp_path, 1, **cache_fields("1", "Instruction", "32K", "8"))
    described(tmp_path, 3, **cache_fields("3", "Unified", "32768K", "16"), shared_cpu_list="0-7")
    described(tmp_path, 2, **cache_fields("2", "Unified", "1M", "16"))
    assert cpu_levels(tmp_path) == (
        CacheLevel("L1", 48 * 1024, 64, 12, "0"),
        CacheLevel("L2", 2**20, 64, 16),
        CacheLevel("L3", 2**25, 64, 16, "0-7"),
    )
    assert last_level(tmp_path) == CacheLevel("L3", 2**25, 64, 16, "0-7")


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    assert cpu_levels(tmp_path / "absent") == ()
    assert last_level(tmp_path / "absent") is None
    described(tmp_path, 0, level="1", type="Data")  # no size
    described(tmp_path, 1, **cache_fields("2", "Unified", "unknown", "8"))
    described(tmp_path, 2, **cache_fields("3", "Unified", "100K", "7"))  # no whole number of sets
    assert cpu_levels(tmp_path) == ()


def test_this_machine() -> None:
    for level in (*cpu_levels(), *gpu_levels()):
        assert level.size == level.sets * max(1, level.ways or level.lines) * level.line


def test_sets() -> None:
    level = CacheLevel("L2", 512 * 1024, 64, 8)
    assert (level.lines, level.sets) == (8192, 1024)
    assert CacheLevel("any", 640).sets == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 1000}, "multiple of 64"),
        ({"size": 0}, "multiple of 64"),
        ({"size": 1024, "line": 48}, "power of two"),
        ({"size": 1024, "line": 0}, "power of two"),
        ({"size": 1024, "ways": -1}, "fully associative"),
        ({"size": 1024, "ways": 32}, "32 lines of 64"),
    ],
)
def test_caches_that_cannot_be(fields: dict[str, int], message: str) -> None:
    with pytest.raises(TrafficError, match=message):
        CacheLevel("L1", **fields)


def test_sizes_as_written() -> None:
    assert [bytes_of(text) for text in ("64", "32K", "512 KiB", "1mb", "2G")] == [
        64,
        2**15,
        2**19,
        2**20,
        2**31,
    ]
    for text in ("", "K", "1.5M", "-4", "0", "3x"):
        with pytest.raises(TrafficError, match="written as"):
            bytes_of(text)
