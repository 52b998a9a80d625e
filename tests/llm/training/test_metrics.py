"""Metrics: valid JSON always, no torn line, and a length that a resume goes back to."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from firsthand.llm.training.errors import TrainingError
from firsthand.llm.training.metrics import MetricsLog, TensorBoardLog, read_metrics

torch.set_num_threads(1)

NUMBERS = st.floats() | st.integers()
VALUES = st.recursive(
    NUMBERS | st.none() | st.booleans() | st.sampled_from(["", "blocks.0", "ä\n\u2028"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def equal(a: Any, b: Any) -> bool:
    """Like ==, with every NaN equal, and 0.0 not -0.0."""
    return repr(a) == repr(b)


@given(records=st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=4), max_size=5))
def test_any_records_come_back_and_every_line_is_strict_json(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    with MetricsLog(path) as log:
        for record in records:
            log.append(record)
            assert log.length == path.stat().st_size
    lines = path.read_bytes().split(b"\n")
    assert len(lines) == len(records) + 1
    for line in lines[:-1]:
        json.loads(line, parse_constant=refuse)
    assert equal(read_metrics(path), records)


def test_numbers_of_numpy_and_pytorch_are_numbers(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "m") as log:
        log.append({"a": np.float32(0.5), "b": torch.tensor(3), "c": (np.int64(2), torch.inf)})
    assert read_metrics(tmp_path / "m") == [{"a": 0.5, "b": 3, "c": [2, math.inf]}]


def test_a_resume_cuts_back_to_where_the_checkpoint_was(tmp_path: Path) -> None:
    path = tmp_path / "m"
    log = MetricsLog(path)
    log.append({"step": 1})
    place = log.length
    log.append({"step": 2})
    log.close()
    log.close()
    with path.open("ab") as file:
        file.write(b'{"step": 3, "lo')
    with MetricsLog(path) as log:
        assert log.length == 2 * place
        assert log.truncate(place) == 0
        log.append({"step": 2, "again": True})
    assert read_metrics(path) == [{"step": 1}, {"step": 2, "again": True}]


def test_a_file_that_someone_shortened_goes_on_with_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b'{"step": 1}\n{"st')
    with MetricsLog(path) as log:
        assert log.truncate(40) == 40 - 12
        assert log.truncate(5) == 5
        log.append({"step": 9})
    assert read_metrics(path) == [{"step": 9}]


@given(torn=st.integers(0, 200_000), lines=st.integers(0, 3))
def test_a_torn_last_line_of_any_length_is_dropped(
    tmp_path_factory: pytest.TempPathFactory, torn: int, lines: int
) -> None:
    path = tmp_path_factory.mktemp("run") / "m"
    whole = b'{"a": 1}\n' * lines
    path.write_bytes(whole + b"x" * torn)
    assert read_metrics(path) == [{"a": 1}] * lines
    with MetricsLog(path) as log:
        assert log.length == len(whole)
    assert path.read_bytes() == whole


def test_every_record_is_there_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "m"
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        log = MetricsLog(path)
        for step in range(50):
            log.append({"step": step})
        os.write(writer, b".")
        signal.pause()
    os.read(reader, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reader)
    os.close(writer)
    assert [record["step"] for record in read_metrics(path)] == list(range(50))


def test_reading_tells_which_line_is_broken_and_none_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "m"
    assert read_metrics(path) == []
    path.write_bytes(b'{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(TrainingError, match="m, line 2: this is not JSON"):
        read_metrics(path)
    path.write_bytes(b"{}\n[1]\n")
    with pytest.raises(TrainingError, match="line 2: not an object"):
        read_metrics(path)
    with pytest.raises(TrainingError, match="cannot be opened"):
        MetricsLog(tmp_path / "none" / "m")


def test_a_full_disk_leaves_whole_lines_and_the_log_usable(tmp_path: Path) -> None:
    path = tmp_path / "m"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with MetricsLog(path) as log:
        log.append({"step": 1})
        resource.setrlimit(resource.RLIMIT_FSIZE, (log.length + 20, hard))
        try:
            with pytest.raises(TrainingError, match="m: cannot be written at byte 12: File too"):
                log.append({"step": 2, "text": "x" * 100})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == b'{"step": 1}\n'
        log.append({"step": 2})
        log.sync()
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]


# ---------------------------------------------------------------------- TensorBoard


def test_a_missing_tensorboard_is_told_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainingError, match="pip install tensorboard"):
        TensorBoardLog(tmp_path)


def test_every_number_goes_to_the_writer_with_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []

    class Writer:
        def __init__(self, log_dir: str, purge_step: int) -> None:
            calls.append((log_dir, purge_step))

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            calls.append((tag, value, step))

        def close(self) -> None:
            calls.append(("closed",))

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    log = TensorBoardLog(tmp_path, step=4)
    log.append({"step": 5, "loss": 2.5, "flow": {"blocks.0": math.inf}, "text": "a", "ok": True})
    log.close()
    assert calls == [
        (str(tmp_path), 4),
        ("loss", 2.5, 5),
        ("flow.blocks.0", math.inf, 5),
        ("closed",),
    ]


def test_the_real_tensorboard_shows_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = TensorBoardLog(tmp_path)
    log.append({"step": 1, "loss": 2.5})
    log.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2.5)]
