"""Products and overheads: what is measured is computed, and what does not exist is missing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from firsthand.llm.audit import overheads, peaks
from firsthand.llm.audit.overheads import CREW, OPERATION, PARALLEL, TEAM, OverheadProbe
from firsthand.llm.audit.peaks import PREFILL_WIDTHS, PanelProbe, ProductProbe, torch_threads
from firsthand.llm.audit.rounds import in_rounds
from firsthand.llm.audit.threads import run_together
from firsthand.llm.kernels.int8_matmul.panels import PANEL

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sides that take no time."""
    monkeypatch.setattr(peaks, "_FIRST_SIDE", {"cpu": 8})
    monkeypatch.setattr(peaks, "_LAST_SIDE", {"cpu": 32})
    monkeypatch.setattr(peaks, "_ENOUGH_SECONDS", {"cpu": 60.0})


def test_a_rate_for_each_dtype() -> None:
    probe = ProductProbe("cpu", 1)
    in_rounds([probe], 0)
    assert set(probe.result()) == {"float32", "bfloat16", "int8"}
    assert all(0 < rate < math.inf for rate in probe.result().values())
    assert [side for side, _ in probe._kept["float32"]] == [16, 32]


def test_a_product_that_does_not_exist_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("_int_mm is not implemented here")

    monkeypatch.setattr(torch, "_int_mm", refuse)
    probe = ProductProbe("cpu", 1)
    in_rounds([probe], 0)
    assert set(probe.result()) == {"float32", "bfloat16"}


def test_the_sides_grow_until_a_product_takes_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def pretend(dtype: str, device: str, side: int) -> int:
        seen.append(side)
        return side

    monkeypatch.setattr(peaks, "_LAST_SIDE", {"cpu": 1 << 20})
    monkeypatch.setattr(peaks, "_ENOUGH_SECONDS", {"cpu": 1.0})
    monkeypatch.setattr(peaks, "_product", pretend)
    # A machine of 2 * 10**6 FLOPs a second takes 2 seconds for a side of 126.
    monkeypatch.setattr(peaks, "seconds_of", lambda side, runs, device: [side**3 / 1e6] * runs)
    probe = ProductProbe("cpu", 1)
    in_rounds([probe], 0)
    assert seen == [8, 16, 32, 64, 128] * 3
    assert probe.result()["float32"] == pytest.approx(2e6)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_panels_compute_the_product(threads: int) -> None:
    tokens, width = 11, 768
    arrays = peaks._panel_arrays(threads, tokens, width)
    run_together(peaks._panels, threads, 1, 1, lambda thread: arrays)
    x, x_scales, w, w_scales, _, out = arrays
    exact = np.einsum("mk,nk->mn", x.astype(np.int64), w.astype(np.int64))
    assert np.allclose(out, exact * np.outer(x_scales, w_scales), rtol=1e-6)
    assert len(w) == threads * PANEL
    assert out.any()


def test_the_rate_of_the_panels_weighs_times() -> None:
    probe = PanelProbe(1, tokens=4)
    in_rounds([probe], 0)
    operations = {width: 2 * 4 * PANEL * width for width in PREFILL_WIDTHS}
    probe._best = dict(zip(PREFILL_WIDTHS, (1.0, 5.0), strict=True))
    shares = list(PREFILL_WIDTHS.values())
    first, second = (operations[width] for width in PREFILL_WIDTHS)
    assert sum(shares) == pytest.approx(1)
    assert probe.result() == pytest.approx(1 / (shares[0] / first + shares[1] * 5 / second))


def test_torch_has_its_threads_back() -> None:
    def fail() -> None:
        with torch_threads(2):
            assert torch.get_num_threads() == 2
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.get_num_threads() == 1


def test_each_overhead_is_a_time() -> None:
    probe = OverheadProbe(2)
    in_rounds([probe], 0)
    found = probe.result()
    assert set(found) >= {CREW, OPERATION, PARALLEL}
    assert all(0 < value < math.inf for value in found.values())


@pytest.mark.parametrize("how", ["forked", "refused"])
def test_without_the_threads_of_pytorch(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "forked":
        monkeypatch.setattr(overheads.team, "available", lambda: False)
    else:
        monkeypatch.setattr(overheads.team, "available", lambda: True)
        monkeypatch.setattr(overheads.team, "run", lambda *arguments: False)
    probe = OverheadProbe(1)
    in_rounds([probe], 0)
    assert TEAM not in probe.result()
    assert CREW in probe.result()
