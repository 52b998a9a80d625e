"""The record of a machine: checked, written, read, found again; and how it is put together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firsthand.llm.audit import ceilings as module
from firsthand.llm.audit import measurement
from firsthand.llm.audit.ceilings import (
    Bandwidths,
    DeviceCeilings,
    MachineCeilings,
    found_ceilings,
    measure_machine_ceilings,
    record_path,
    stored_ceilings,
)
from firsthand.llm.audit.errors import AuditError
from firsthand.llm.audit.overheads import CREW, OPERATION
from firsthand.llm.audit.processor import Processor, read_processor

RATES = st.floats(1e3, 1e15)


@st.composite
def devices(draw: st.DrawFn) -> DeviceCeilings:
    sizes = sorted(draw(st.sets(st.integers(1, 1 << 40), min_size=1, max_size=6)))
    return DeviceCeilings(
        device="cpu",
        name=draw(st.text(max_size=8)),
        bandwidths=tuple(
            Bandwidths(size, draw(RATES), draw(RATES), draw(RATES), draw(st.floats(0, 9)))
            for size in sizes
        ),
        flop_rates=draw(st.dictionaries(st.sampled_from(["float32", "int8"]), RATES)),
        int8_kernel_rate=draw(st.floats(0, 1e15)),
        region_seconds=draw(st.floats(0, 1)),
        launch_seconds=draw(st.floats(0, 1)),
        memory=draw(st.integers(0, 1 << 50)),
        threads=draw(st.integers(1, 512)),
        overheads=draw(st.dictionaries(st.text(max_size=5), st.floats(0, 1), max_size=3)),
    )


@given(devices())
def test_a_record_comes_back_as_it_was(device: DeviceCeilings) -> None:
    machine = MachineCeilings(read_processor(), device, None, "2026-01-02", 1.5, ("a note",))
    assert MachineCeilings.from_json(json.loads(json.dumps(machine.to_json()))) == machine


def test_with_a_gpu_too(ceilings_with_gpu: MachineCeilings, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "machine.json"
    ceilings_with_gpu.save(path)
    assert MachineCeilings.load(path) == ceilings_with_gpu


@given(devices(), st.integers(1, 1 << 41), st.integers(1, 1 << 41))
def test_a_bandwidth_lies_between_its_neighbours(
    device: DeviceCeilings, size: int, other: int
) -> None:
    sizes = [point.working_set for point in device.bandwidths]
    for point in device.bandwidths:
        assert device.read_bandwidth(point.working_set) == pytest.approx(point.read)
        assert device.write_bandwidth(point.working_set) == pytest.approx(point.write)
        assert device.copy_bandwidth(point.working_set) == pytest.approx(point.copy)
    around = [p.read for p in device.bandwidths if p.working_set <= size][-1:]
    around += [p.read for p in device.bandwidths if p.working_set >= size][:1]
    found = device.read_bandwidth(size)
    assert min(around) * (1 - 1e-9) <= found <= max(around) * (1 + 1e-9)
    if size >= sizes[-1] and other >= sizes[-1]:
        assert found == device.read_bandwidth(other)


def test_halfway_in_the_logarithm(ceilings: MachineCeilings) -> None:
    first, second = ceilings.cpu.bandwidths[:2]
    middle = 2**18  # between 2**16 and 2**20
    assert (first.working_set, second.working_set) == (2**16, 2**20)
    assert ceilings.cpu.read_bandwidth(middle) == pytest.approx((first.read + second.read) / 2)


@pytest.mark.parametrize(
    "change",
    [
        {"bandwidths": ()},
        {"bandwidths": (Bandwidths(8, 1, 1, 1), Bandwidths(8, 1, 1, 1))},
        {"flop_rates": {"float32": 0.0}},
        {"flop_rates": {"float32": float("nan")}},
        {"int8_kernel_rate": -1.0},
        {"region_seconds": float("inf")},
        {"overheads": {"a call": float("nan")}},
        {"memory": -1},
        {"threads": 0},
    ],
)
def test_impossible_limits(ceilings: MachineCeilings, change: dict[str, Any]) -> None:
    with pytest.raises(AuditError):
        replace(ceilings.cpu, **change)


@pytest.mark.parametrize("rates", [(0, 1, 1), (1, -1, 1), (1, 1, float("inf"))])
def test_impossible_bandwidths(rates: tuple[float, float, float]) -> None:
    with pytest.raises(AuditError, match="above 0 and finite"):
        Bandwidths(1, *rates)


def _damaged(record: dict[str, Any]) -> list[Any]:
    return [
        None,
        [],
        {},
        {**record, "version": 99},
        {name: value for name, value in record.items() if name != "cpu"},
        {**record, "seconds": "a while"},
        {**record, "cpu": {**record["cpu"], "bandwidths": []}},
        {**record, "cpu": {**record["cpu"], "threads": 0}},
        {**record, "processor": 7},
    ]


def test_damaged_records(ceilings: MachineCeilings) -> None:
    for record in _damaged(ceilings.to_json()):
        with pytest.raises(AuditError) as caught:
            MachineCeilings.from_json(record)
        assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_written(ceilings: MachineCeilings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AuditError, match="cannot be written"):
        ceilings.save(tmp_path / "file" / "machine.json")


# ---------------------------------------------------------------------- the stored one


def this_machine(ceilings: MachineCeilings) -> MachineCeilings:
    return replace(ceilings, processor=read_processor())


def test_never_measured(tmp_path: Path) -> None:
    assert stored_ceilings(tmp_path) is None
    assert found_ceilings(tmp_path) == (None, "")


def test_measured_before_here(ceilings: MachineCeilings, tmp_path: Path) -> None:
    stored = this_machine(ceilings)
    stored.save(tmp_path / "machine.json")
    assert stored_ceilings(tmp_path) == stored
    assert found_ceilings(tmp_path) == (stored, "")


def test_measured_on_another_machine(ceilings: MachineCeilings, tmp_path: Path) -> None:
    ceilings.save(tmp_path / "machine.json")
    assert stored_ceilings(tmp_path) is None
    assert "another machine" in found_ceilings(tmp_path)[1]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"version": 1}'])
def test_a_corrupt_file_counts_as_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "machine.json").write_bytes(content)
    found, why = found_ceilings(tmp_path)
    assert found is None
    assert "machine.json" in why


def test_the_usual_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRSTHAND_HOME", str(tmp_path))
    assert record_path() == tmp_path / "machine.json"
    assert record_path(tmp_path / "other") == tmp_path / "other" / "machine.json"
    monkeypatch.delenv("FIRSTHAND_HOME")
    monkeypatch.setattr(module.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert record_path() == tmp_path / "cache" / "firsthand" / "machine.json"


# ---------------------------------------------------------------------- measuring


class _Fake:
    """A probe that measures nothing and has a result."""

    def __init__(self, result: Any) -> None:
        self._result, self.taken = result, 0

    def steps(self) -> list[Any]:
        return [self._take]

    def _take(self) -> None:
        self.taken += 1

    def result(self, *given: Any) -> Any:
        assert self.taken
        return self._result


@pytest.fixture
def fakes(ceilings_with_gpu: MachineCeilings, monkeypatch: pytest.MonkeyPatch) -> dict[str, _Fake]:
    """All that is measured of the machine without a GPU, as it stands in its record."""
    cpu, processor = ceilings_with_gpu.cpu, replace(ceilings_with_gpu.processor, gpu=None)
    found = {
        "MemoryProbe": _Fake(cpu.bandwidths),
        "ProductProbe": _Fake({"float32": 2e11, "int8": 1e9}),
        "PanelProbe": _Fake(cpu.int8_kernel_rate),
        "OverheadProbe": _Fake({CREW: 1e-6, OPERATION: 2e-6}),
        "KernelProbe": _Fake({}),
        "CallProbe": _Fake(3e-6),
    }
    for name, fake in found.items():
        monkeypatch.setattr(measurement, name, lambda *given, fake=fake: fake)
    monkeypatch.setattr(measurement, "read_processor", lambda: processor)
    monkeypatch.setattr(measurement.resources, "free_memory", lambda: 1 << 40)
    return found


def test_a_machine_is_put_together(fakes: dict[str, _Fake]) -> None:
    calls: list[tuple[str, float]] = []
    found = measure_machine_ceilings(
        seconds=0, progress=lambda what, share: calls.append((what, share))
    )
    assert found.cpu.flop_rates == {"float32": 2e11, "int8": 4e11}
    assert found.cpu.int8_by == "the project's panels"
    assert (found.cpu.region_seconds, found.cpu.launch_seconds) == (1e-6, 2e-6)
    assert (found.cpu.threads, found.gpu, found.notes) == (4, None, ())
    shares = [share for _, share in calls]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert MachineCeilings.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_the_faster_int8_product_is_the_peak(fakes: dict[str, _Fake]) -> None:
    fakes["ProductProbe"]._result = {"float32": 2e11, "int8": 9e12}
    found = measure_machine_ceilings(seconds=0).cpu
    assert (found.flop_rates["int8"], found.int8_by) == (9e12, "PyTorch")
    assert found.int8_kernel_rate == 4e11


def test_what_is_missing_is_said(
    fakes: dict[str, _Fake], monkeypatch: pytest.MonkeyPatch, ceilings: MachineCeilings
) -> None:
    poor = replace(ceilings.processor, simd=(), caches=(), architecture="x86_64")
    monkeypatch.setattr(measurement, "read_processor", lambda: poor)
    monkeypatch.setattr(measurement.resources, "free_memory", lambda: 1 << 20)
    notes = " ".join(measure_machine_ceilings(seconds=0).notes)
    assert "AVX2" in notes
    assert "how large the caches are" in notes
    assert "free memory" in notes


def test_a_machine_that_is_not_quiet_is_said(fakes: dict[str, _Fake]) -> None:
    steps = fakes["MemoryProbe"]._result
    fakes["MemoryProbe"]._result = tuple(replace(step, spread=0.9) for step in steps)
    (note,) = measure_machine_ceilings(seconds=0).notes
    assert "90% longer" in note


def test_a_gpu_that_fails_leaves_the_cpu(
    fakes: dict[str, _Fake],
    monkeypatch: pytest.MonkeyPatch,
    ceilings_with_gpu: MachineCeilings,
) -> None:
    monkeypatch.setattr(measurement, "read_processor", lambda: ceilings_with_gpu.processor)

    def fail(*given: object) -> DeviceCeilings:
        raise RuntimeError("CUDA out of memory\nmore of it")

    monkeypatch.setattr(measurement, "_gpu_ceilings", fail)
    found = measure_machine_ceilings(seconds=0)
    assert found.gpu is None
    assert found.notes == ("The GPU could not be measured: CUDA out of memory",)


def test_a_gpu_by_fakes(
    fakes: dict[str, _Fake],
    monkeypatch: pytest.MonkeyPatch,
    ceilings_with_gpu: MachineCeilings,
) -> None:
    card, gpu = ceilings_with_gpu.processor.gpu, ceilings_with_gpu.gpu
    assert card is not None
    assert gpu is not None
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (card.memory // 2, card.memory))
    monkeypatch.setattr(measurement, "TensorProbe", lambda sizes: _Fake(gpu.bandwidths))
    monkeypatch.setattr(measurement, "LaunchProbe", lambda: _Fake(4e-6))
    found = measurement._gpu_ceilings(card, 0.0, lambda share: None)
    assert (found.device, found.threads, found.launch_seconds) == ("cuda", 1, 4e-6)
    assert found.flop_rates == {"float32": 2e11, "int8": 1e9}
    assert (found.int8_by, found.int8_kernel_rate, found.memory) == ("PyTorch", 0.0, card.memory)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_no_time(seconds: float, fakes: dict[str, _Fake]) -> None:
    with pytest.raises(AuditError, match="0 seconds or more"):
        measure_machine_ceilings(seconds=seconds)


def test_the_processor_of_this_machine_is_a_record_too() -> None:
    this = read_processor()
    assert isinstance(this, Processor)
    assert this.cores >= 1
