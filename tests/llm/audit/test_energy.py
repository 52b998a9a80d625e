"""Energy counters: packages, turns, and machines that do not tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from firsthand.llm.audit import energy
from firsthand.llm.audit.energy import PackageCounters, processor_energy
from firsthand.llm.audit.errors import AuditError


def zone(folder: Path, name: str, count: int, turn: int = 1_000_000) -> Path:
    """A counter as Linux shows it."""
    place = folder / name
    place.mkdir(parents=True)
    (place / "energy_uj").write_text(f"{count}\n")
    (place / "max_energy_range_uj").write_text(f"{turn}\n")
    return place


def test_packages_are_added_and_their_zones_are_not(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", 100)
    second = zone(tmp_path, "intel-rapl:1", 500)
    zone(tmp_path, "intel-rapl:0:0", 7)
    counters = PackageCounters(tmp_path)
    before = counters.read()
    assert before == [100, 500]
    (first / "energy_uj").write_text("150")
    (second / "energy_uj").write_text("520")
    assert counters.joules(before, counters.read()) == pytest.approx(70e-6)


def test_a_counter_begins_again(tmp_path: Path) -> None:
    place = zone(tmp_path, "intel-rapl:0", 999_990)
    counters = PackageCounters(tmp_path)
    before = counters.read()
    (place / "energy_uj").write_text("30")
    assert counters.joules(before, counters.read()) == pytest.approx(40e-6)


def test_a_token_takes_its_share(tmp_path: Path) -> None:
    place = zone(tmp_path, "intel-rapl:0", 0, 10**12)
    made = []

    def token() -> None:
        made.append(1)
        (place / "energy_uj").write_text(str(len(made) * 2000))

    found = processor_energy("INT8", token, seconds=0.02, folder=tmp_path)
    assert found.joules == pytest.approx(2e-3)
    assert found.idle_watts == 0
    assert found.watts > 0


@pytest.mark.parametrize("there", [False, True])
def test_a_machine_that_does_not_tell(tmp_path: Path, there: bool) -> None:
    if there:
        (zone(tmp_path, "intel-rapl:0", 0) / "energy_uj").write_text("unknown")
    with pytest.raises(AuditError, match="does not tell the energy"):
        PackageCounters(tmp_path if there else tmp_path / "none")


def test_counters_for_root_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone(tmp_path, "intel-rapl:0", 0)

    def refused(path: Path) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(energy, "_number", refused)
    with pytest.raises(AuditError, match="root alone"):
        PackageCounters(tmp_path)


def test_the_power_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "_by_torch", lambda: 250.0)
    monkeypatch.setattr(energy, "_BETWEEN", 0.001)
    made = []
    found = energy.gpu_energy("bfloat16", lambda: made.append(1), seconds=0.02)
    assert found.watts == 250
    assert found.joules * len(made) == pytest.approx(5.0, rel=1.0)


def test_a_gpu_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent() -> float:
        raise OSError("no such program")

    monkeypatch.setattr(energy, "_by_torch", silent)
    monkeypatch.setattr(energy, "_by_program", silent)
    with pytest.raises(AuditError, match="power of its GPU"):
        energy.gpu_energy("bfloat16", lambda: None, seconds=0)
