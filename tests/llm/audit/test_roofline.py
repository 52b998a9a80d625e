"""The roofline: where memory decides and where arithmetic does, in figures, text and a page."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firsthand.llm.audit import machine_tables as tables
from firsthand.llm.audit.ceilings import DeviceCeilings, MachineCeilings
from firsthand.llm.audit.machine_page import machine_html, write_machine_page
from firsthand.llm.audit.processor import Level
from firsthand.llm.audit.roofline import (
    attainable,
    bandwidth_plot,
    level_of,
    levels_of,
    ridge,
    roofline_plot,
    steps_of,
    text_roofline,
)

POSITIVE = st.floats(1e-3, 1e15)


@given(intensity=POSITIVE, rate=POSITIVE, bandwidth=POSITIVE)
def test_memory_below_the_ridge_and_arithmetic_above(
    intensity: float, rate: float, bandwidth: float
) -> None:
    found = attainable(intensity, rate, bandwidth)
    if intensity < ridge(rate, bandwidth):
        assert found == pytest.approx(intensity * bandwidth)
    else:
        assert found == pytest.approx(rate)


def test_each_memory_with_the_largest_set_that_it_surely_holds(ceilings: MachineCeilings) -> None:
    found = steps_of(ceilings.cpu, levels_of(ceilings, "cpu"))
    assert [step.level.name for step in found] == ["L1", "L2", "L3", "DRAM"]
    assert [step.measured.working_set for step in found] == [2**16, 2**20, 2**23, 2**28]
    assert found[0].total == 4 * 32 * 2**10


def test_memory_that_was_not_reached_is_left_out(ceilings: MachineCeilings) -> None:
    few = replace(ceilings.cpu, bandwidths=ceilings.cpu.bandwidths[:3])
    found = steps_of(few, levels_of(ceilings, "cpu"))
    assert [step.level.name for step in found] == ["L1", "L2", "L3"]
    first = replace(ceilings.cpu, bandwidths=ceilings.cpu.bandwidths[3:])
    assert [s.level.name for s in steps_of(first, levels_of(ceilings, "cpu"))] == ["DRAM"]


def test_without_caches_the_largest_set_is_memory(ceilings: MachineCeilings) -> None:
    found = steps_of(ceilings.cpu, (Level("DRAM", 2**33),))
    assert [step.measured.working_set for step in found] == [2**28]


def test_what_a_working_set_fits(ceilings: MachineCeilings) -> None:
    levels = levels_of(ceilings, "cpu")
    names = [level_of(b.working_set, ceilings.cpu, levels) for b in ceilings.cpu.bandwidths]
    assert names == ["L1", "L2", "L3", "DRAM", "DRAM"]


@pytest.mark.parametrize("width", [20, 40, 60, 76, 80])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_drawing_in_plain_text(
    ceilings_with_gpu: MachineCeilings, width: int, device: str
) -> None:
    limits = ceilings_with_gpu.cpu if device == "cpu" else ceilings_with_gpu.gpu
    assert limits is not None
    steps = steps_of(limits, levels_of(ceilings_with_gpu, device))
    lines = text_roofline(limits, steps, width=width)
    text = "\n".join(lines)
    assert text.isascii()
    assert max(map(len, lines[:-2])) <= max(width, 40)
    for dtype in limits.flop_rates:
        assert re.search(rf"-.* {dtype} ", text)
    rows = [line.partition("|")[2] for line in lines if "|" in line]
    ends = [row.index("/") for row in rows if "/" in row]
    assert ends == sorted(ends, reverse=True), "memory's roof rises from left to right"


def _with_rates(device: DeviceCeilings, rates: list[float]) -> DeviceCeilings:
    names = ("float32", "bfloat16", "int8")
    return replace(device, flop_rates=dict(zip(names, rates, strict=False)))


@given(rates=st.lists(st.floats(1e6, 1e16), min_size=1, max_size=3))
def test_every_machine_can_be_drawn(fixed_ceilings: MachineCeilings, rates: list[float]) -> None:
    device = _with_rates(fixed_ceilings.cpu, rates)
    steps = steps_of(device, levels_of(fixed_ceilings, "cpu"))
    lines = text_roofline(device, steps)
    labels = [name for name in device.flop_rates if any(f" {name} " in line for line in lines)]
    assert labels == list(device.flop_rates)
    roofline_plot(device, steps)


def test_nothing_to_draw(ceilings: MachineCeilings) -> None:
    steps = steps_of(ceilings.cpu, levels_of(ceilings, "cpu"))
    assert text_roofline(replace(ceilings.cpu, flop_rates={}), steps) == []
    assert text_roofline(ceilings.cpu, []) == []
    assert roofline_plot(ceilings.cpu, []).series == ()


def test_the_lines_of_the_plot_are_the_roof(ceilings: MachineCeilings) -> None:
    steps = steps_of(ceilings.cpu, levels_of(ceilings, "cpu"))
    plot = roofline_plot(ceilings.cpu, steps)
    by_name = {series.name: series for series in plot.series}
    assert set(by_name) == {"float32", "bfloat16", "int8", "L1", "L2", "L3", "DRAM"}
    for dtype, rate in ceilings.cpu.flop_rates.items():
        for x, y in by_name[dtype].points:
            assert y == pytest.approx(attainable(x, rate, 30e9))
    for series in plot.series:
        assert [x for x, _ in series.points] == sorted(x for x, _ in series.points)


# ---------------------------------------------------------------------- tables and the page


def test_facts_say_what_limits(ceilings: MachineCeilings) -> None:
    plain = dict(tables.facts(ceilings.processor))
    assert plain["cores"] == "4"
    assert plain["GPU"] == "none that PyTorch can use"
    assert "L3 16 MiB for 4 cores" in plain["caches"]
    quota = replace(ceilings.processor, machine_cores=64, quota=3.5, machine_memory=2**36)
    limited = dict(tables.facts(quota))
    assert limited["cores"] == "4 of 64: the control group's quota is 3.5 cores"
    assert limited["RAM"] == "8 GiB of 64 GiB: the control group's limit"
    mask = dict(tables.facts(replace(ceilings.processor, machine_cores=64)))
    assert mask["cores"] == "4 of 64: the affinity mask"
    unknown = dict(tables.facts(replace(ceilings.processor, simd=(), caches=(), memory=0)))
    assert {unknown[name] for name in ("SIMD", "caches", "RAM")} == {"the system does not say"}


def test_tables(ceilings: MachineCeilings) -> None:
    table = tables.bandwidth_table(ceilings, ceilings.cpu)
    assert [row[0] for row in table.rows] == ["L1", "L2", "L3", "DRAM", ""]
    assert table.rows[0] == ("L1", "64 KiB", "400", "200", "380", "5%")
    ((_, cpu, steps),) = tables.devices(ceilings)
    products = tables.product_table(cpu, steps)
    assert products.rows[0] == ("float32", "200", "0.5", "1", "2", "6.67")
    assert "the project's panels" in products.note
    other = replace(cpu, int8_kernel_rate=90e9)
    assert tables.product_table(other, steps).rows[-1][:2] == ("int8, panels", "90")


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.0, "2 s"), (3e-3, "3 ms"), (7.4e-6, "7.4 us"), (1.9e-7, "190 ns")]
)
def test_short_times(seconds: float, text: str) -> None:
    assert tables.seconds_text(seconds) == text


@pytest.mark.parametrize("with_gpu", [False, True])
def test_the_page_is_whole_and_needs_nothing_from_elsewhere(
    ceilings: MachineCeilings, ceilings_with_gpu: MachineCeilings, with_gpu: bool, tmp_path: Path
) -> None:
    machine = replace(
        ceilings_with_gpu if with_gpu else ceilings, notes=("<b>too little memory</b>.",)
    )
    path = tmp_path / "machine.html"
    write_machine_page(machine, path)
    page = path.read_text(encoding="utf-8")
    assert page == machine_html(machine)
    assert page.count("<svg") == (4 if with_gpu else 2)
    assert "<script" not in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "&lt;b&gt;too little memory" in page
    for text in ("Example CPU", "float32 200 GFLOP/s", "DRAM 30 GB/s", "2026-01-02 03:04:05 UTC"):
        assert text in page
    assert ("Example GPU" in page) is with_gpu


def test_the_plot_of_bandwidths(ceilings: MachineCeilings) -> None:
    plot = bandwidth_plot(ceilings.cpu)
    assert [series.name for series in plot.series] == ["read", "write", "copy"]
    assert plot.series[0].points[0] == (2**16, 400e9)
