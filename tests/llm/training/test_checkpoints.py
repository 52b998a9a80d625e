"""A checkpoint is whole or not there, and every damage is found."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import REFERENCE
from firsthand.llm.training import checkpoints
from firsthand.llm.training.checkpoints import (
    STATE_FILE,
    CheckpointError,
    DamagedCheckpointError,
    begin_checkpoint,
    checkpoint_path,
    commit_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_latest,
    prune,
    save_checkpoint,
    verify_checkpoint,
)

torch.set_num_threads(1)

STATE = {"tokens": 12, "loader": {"seed": 1, "position": 3}, "note": "ä", "rate": 0.1, "none": None}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8)
# A whole set-up is one folder per example: hypothesis may share pytest's.
SHARED = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Killed(BaseException):
    """Not an Exception: like a kill, nothing may tidy up after it."""


def groups(seed: int = 0) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "model": {"weight": torch.randn(5, 7, generator=generator), "scale": torch.tensor(1.5)},
        "optimizer": {"weight.first": torch.randn(5, 7, generator=generator)},
    }


def same(a: dict[str, dict[str, Tensor]], b: dict[str, dict[str, Tensor]]) -> bool:
    def content(t: Tensor) -> tuple[object, ...]:
        raw = t.detach().contiguous().reshape(-1).view(torch.uint8)
        return t.dtype, tuple(t.shape), raw.numpy().tobytes()

    def plain(all_groups: dict[str, dict[str, Tensor]]) -> object:
        return {g: {n: content(t) for n, t in named.items()} for g, named in all_groups.items()}

    return plain(a) == plain(b)


def flip(path: Path, place: int, bit: int = 0) -> None:
    raw = bytearray(path.read_bytes())
    raw[place % len(raw)] ^= 1 << bit
    path.write_bytes(raw)


@contextmanager
def files_limited_to(count: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# ---------------------------------------------------------------------- round trips


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    raw = torch.randint(
        0, 256, (*shape, dtype.itemsize), dtype=torch.uint8,
        generator=torch.Generator().manual_seed(draw(st.integers(0, 99))),
    )  # fmt: skip
    tensor = raw.view(dtype).reshape(shape)
    return tensor.transpose(0, -1) if tensor.ndim > 1 and draw(st.booleans()) else tensor


@SHARED
@given(
    named=st.dictionaries(
        st.sampled_from(["model", "optimizer", "average"]),
        st.dictionaries(st.text(min_size=1, max_size=8), tensors(), max_size=4),
        max_size=3,
    ),
    step=st.integers(0, 10**10),
)
def test_any_tensors_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, named: dict[str, dict[str, Tensor]], step: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    path = save_checkpoint(folder, step, named, STATE)
    loaded = load_checkpoint(path)
    assert same(loaded.tensors, named)
    assert (loaded.step, loaded.state, loaded.path) == (step, STATE, path)
    assert list_checkpoints(folder) == [path]


def test_a_tied_model_is_saved_once_and_goes_into_another_one(tmp_path: Path) -> None:
    config = ModelConfig(vocab_size=11, context=8, d_model=8, n_layers=1, n_heads=2)
    model = Transformer(config, REFERENCE, seed=1)
    path = save_checkpoint(tmp_path, 1, {"model": model.state_dict()}, {})
    other = Transformer(config, REFERENCE, seed=2)
    loaded = load_checkpoint(path).tensors["model"]
    assert not any("output_weight" in name for name in loaded)
    other.load_state_dict(loaded)
    assert other.output_weight is other.embedding.weight
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )


def test_parameters_and_views_of_one_buffer_can_be_saved(tmp_path: Path) -> None:
    flat = torch.arange(12.0)
    parts = {"a": flat[:4].view(2, 2), "b": flat[4:], "p": torch.nn.Parameter(torch.ones(3))}
    path = save_checkpoint(tmp_path, 1, {"optimizer": parts}, {})
    assert same(load_checkpoint(path).tensors, {"optimizer": parts})


def test_loaded_tensors_lie_where_pytorch_would_put_them(tmp_path: Path) -> None:
    odd = {f"t{n}": torch.ones(n, dtype=torch.uint8) for n in (1, 3, 5)}
    odd |= {f"f{n}": torch.ones(n) for n in (3, 5, 7)}
    path = save_checkpoint(tmp_path, 1, {"model": odd}, {})
    loaded = load_checkpoint(path).tensors["model"]
    assert all(tensor.data_ptr() % 64 == 0 for tensor in loaded.values())
    shutil.rmtree(path)
    assert same({"model": loaded}, {"model": odd})  # no map of the removed file


def test_some_groups_alone_are_neither_read_nor_verified_with_the_rest(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, groups(), STATE)
    flip(path / "optimizer.safetensors", -1)
    assert same(load_checkpoint(path, only=("model",)).tensors, {"model": groups()["model"]})
    with pytest.raises(CheckpointError, match=r"no average.safetensors.*model, optimizer"):
        load_checkpoint(path, only=("average",))
    with pytest.raises(DamagedCheckpointError, match="optimizer"):
        load_checkpoint(path)


def test_tensors_are_read_onto_the_device_that_is_asked_for(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, groups(), STATE)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load_checkpoint(path, device=device).tensors
    assert all(t.device.type == device.type for named in loaded.values() for t in named.values())
    assert same(
        {g: {n: t.cpu() for n, t in named.items()} for g, named in loaded.items()}, groups()
    )


def test_a_state_that_json_cannot_hold_writes_nothing(tmp_path: Path) -> None:
    for state, error in (({"loss": float("nan")}, ValueError), ({"x": torch.ones(1)}, TypeError)):
        with pytest.raises(error):
            save_checkpoint(tmp_path, 1, groups(), state)
    assert list(tmp_path.iterdir()) == []


def test_files_that_others_wrote_are_under_the_same_seal(tmp_path: Path) -> None:
    partial = begin_checkpoint(tmp_path, 3)
    (partial / "ranks").mkdir()
    (partial / "ranks" / "0.bin").write_bytes(b"abc")
    path = commit_checkpoint(partial, 3, STATE)
    assert verify_checkpoint(path) == (3, STATE)
    assert load_checkpoint(path).tensors == {}
    flip(path / "ranks" / "0.bin", 1)
    with pytest.raises(DamagedCheckpointError, match=r"ranks/0\.bin"):
        verify_checkpoint(path)


# ---------------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("original"), 7, groups(), STATE)


FILES = ("model.safetensors", "optimizer.safetensors", STATE_FILE)


@pytest.mark.parametrize("name", FILES)
@SHARED
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(
    original: Path, tmp_path: Path, name: str, place: int, bit: int
) -> None:
    copy = tmp_path / "step-00000007"
    shutil.copytree(original, copy, dirs_exist_ok=True)
    flip(copy / name, place, bit)
    with pytest.raises(DamagedCheckpointError, match=name):
        load_checkpoint(copy)


def test_every_byte_of_the_state_is_under_its_checksum(original: Path, tmp_path: Path) -> None:
    copy = tmp_path / "step-00000007"
    shutil.copytree(original, copy)
    raw = (copy / STATE_FILE).read_bytes()
    for place in range(len(raw)):
        changed = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
        (copy / STATE_FILE).write_bytes(changed)
        with pytest.raises(DamagedCheckpointError):
            verify_checkpoint(copy)
    (copy / STATE_FILE).write_bytes(raw)
    assert verify_checkpoint(copy) == (7, STATE)


@pytest.mark.parametrize("name", FILES)
@SHARED
@given(share=st.floats(0, 1, exclude_max=True))
def test_any_truncation_is_found(original: Path, tmp_path: Path, name: str, share: float) -> None:
    copy = tmp_path / "step-00000007"
    shutil.copytree(original, copy, dirs_exist_ok=True)
    raw = (original / name).read_bytes()
    (copy / name).write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(DamagedCheckpointError, match=name):
        load_checkpoint(copy)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def grow(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


@pytest.mark.parametrize(
    ("harm", "name", "message"),
    [
        (Path.unlink, "model.safetensors", "missing"),
        (Path.unlink, STATE_FILE, "missing"),
        (cut, "model.safetensors", r"cut short, [\d,]+ bytes instead of"),
        (grow, "optimizer.safetensors", "too long"),
        (lambda file: flip(file, -1), "model.safetensors", "differs from its checksum"),
        (lambda file: file.write_text("step 7"), STATE_FILE, "not JSON"),
        (lambda file: file.write_text("[]"), STATE_FILE, "differs from its checksum"),
        (lambda file: file.write_text('{"step": 7}'), STATE_FILE, "differs from its checksum"),
    ],
)
def test_the_message_names_the_file_and_the_damage(
    original: Path, tmp_path: Path, harm: Callable[[Path], Any], name: str, message: str
) -> None:
    copy = tmp_path / "step-00000007"
    shutil.copytree(original, copy)
    harm(copy / name)
    with pytest.raises(DamagedCheckpointError, match=f"{name}: .*{message}"):
        load_checkpoint(copy)


def test_a_checkpoint_of_another_version_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "VERSION", 2)
    path = save_checkpoint(tmp_path, 1, groups(), STATE)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="version 2; this program reads version 1") as caught:
        load_latest(tmp_path)
    assert not isinstance(caught.value, DamagedCheckpointError)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(path.with_name("step-00000002"))


# ---------------------------------------------------------------------- the newest whole one


def test_the_newest_whole_one_is_taken_and_the_damage_told(tmp_path: Path) -> None:
    assert load_latest(tmp_path / "none") == checkpoints.Latest(checkpoint=None, problems=())
    paths = [save_checkpoint(tmp_path, step, groups(step), {"at": step}) for step in (9, 10, 100)]
    assert list_checkpoints(tmp_path) == paths
    latest = load_latest(tmp_path)
    assert latest.checkpoint is not None
    assert (latest.checkpoint.step, latest.problems) == (100, ())
    cut(paths[2] / "model.safetensors")
    (paths[1] / STATE_FILE).unlink()
    latest = load_latest(tmp_path)
    assert latest.checkpoint is not None
    assert latest.checkpoint.state == {"at": 9}
    assert same(latest.checkpoint.tensors, groups(9))
    assert len(latest.problems) == 2
    assert str(paths[2]) in latest.problems[0]
    assert str(paths[1]) in latest.problems[1]
    cut(paths[0] / STATE_FILE)
    with pytest.raises(DamagedCheckpointError, match="no checkpoint is whole") as caught:
        load_latest(tmp_path)
    assert all(str(path) in str(caught.value) for path in paths)


def test_a_damaged_one_is_replaced_when_its_step_comes_again(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, groups(1), STATE)
    damaged = save_checkpoint(tmp_path, 2, groups(1), STATE)
    cut(damaged / "model.safetensors")
    save_checkpoint(tmp_path, 2, groups(2), STATE)
    latest = load_latest(tmp_path)
    assert latest.problems == ()
    assert same(latest.checkpoint.tensors, groups(2))  # type: ignore[union-attr]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def test_a_reader_finds_the_newer_one_when_the_writer_removes_what_it_looks_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 1, groups(1), STATE)
    real = checkpoints.verify_checkpoint

    def overtaken(path: Path, only: Any = None) -> Any:
        if path.name == "step-00000001" and path.exists():
            save_checkpoint(tmp_path, 2, groups(2), STATE)
            prune(tmp_path, 1, sure=checkpoint_path(tmp_path, 2))
        return real(path, only)

    monkeypatch.setattr(checkpoints, "verify_checkpoint", overtaken)
    latest = load_latest(tmp_path)
    assert (latest.checkpoint.step, latest.problems) == (2, ())  # type: ignore[union-attr]


# ---------------------------------------------------------------------- pruning


def test_pruning_keeps_the_newest_and_clears_leftovers(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, step, groups(step), STATE)
    begin_checkpoint(tmp_path, 5)
    (tmp_path / ".step-00000001.removed").mkdir()
    (tmp_path / ".step-00000002.replaced").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert [path.name for path in prune(tmp_path, 2)] == ["step-00000001", "step-00000002"]
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["notes.txt", "step-00000003", "step-00000004"]
    assert prune(tmp_path, 2) == []
    assert prune(tmp_path / "none", 1) == []
    with pytest.raises(ValueError, match="at least one"):
        prune(tmp_path, 0)


def test_pruning_never_removes_the_last_whole_one(tmp_path: Path) -> None:
    paths = [save_checkpoint(tmp_path, step, groups(step), STATE) for step in (1, 2, 3, 4)]
    flip(paths[3] / "model.safetensors", -1)
    cut(paths[2] / STATE_FILE)
    assert prune(tmp_path, 2) == [paths[0]]
    assert load_latest(tmp_path).checkpoint.step == 2  # type: ignore[union-attr]
    cut(paths[1] / STATE_FILE)
    assert prune(tmp_path, 1) == []
    assert list_checkpoints(tmp_path) == paths[1:]


# ---------------------------------------------------------------------- kills and full disks


def half_written(tensors: Any, filename: Path, **_: Any) -> None:
    filename.write_bytes(b"\x40\0\0\0\0\0\0\0{")


POINTS = ("os.mkdir", "os.open", "os.fsync", "os.chmod", "os.rename", "os.rmdir", "os.unlink")


class KillAt:
    """Ends the save at the n-th call into the system, before or after it has its effect."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, after: bool) -> None:
        self.at, self.after, self.count, self.calls = at, after, 0, list[str]()
        for name in POINTS:
            monkeypatch.setattr(name, self.wrapped(name, getattr(os, name.split(".")[1])))
        saved = self.wrapped("save_file", checkpoints.save_file, half_written)
        monkeypatch.setattr(checkpoints, "save_file", saved)
        write = self.wrapped("write_bytes", Path.write_bytes, lambda path, data: path.touch())
        monkeypatch.setattr(Path, "write_bytes", lambda path, data: write(path, data))

    def wrapped(
        self, name: str, call: Callable[..., Any], partly: Callable[..., Any] | None = None
    ) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            self.calls.append(name)
            if self.count != self.at:
                return call(*arguments, **options)
            if partly and not self.after:
                partly(*arguments, **options)
            elif self.after:
                call(*arguments, **options)
            raise Killed

        return counted


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_a_kill_at_every_step_of_a_save_leaves_a_whole_checkpoint(
    tmp_path: Path, after: bool, again: bool
) -> None:
    """With `again` the killed save replaces the only checkpoint there is."""
    new = 1 if again else 2
    for at in range(1, 200):
        folder = tmp_path / str(at)
        save_checkpoint(folder, 1, groups(1), {"at": "old"})
        with pytest.MonkeyPatch.context() as patch:
            kill = KillAt(patch, at, after)
            with suppress(Killed):
                save_checkpoint(folder, new, groups(2), {"at": "new"})
        ended = kill.count < at
        latest = load_latest(folder)
        assert latest.checkpoint is not None, kill.calls
        assert latest.problems == (), kill.calls
        is_new = latest.checkpoint.state == {"at": "new"}
        assert is_new or latest.checkpoint.state == {"at": "old"}
        assert same(latest.checkpoint.tensors, groups(2 if is_new else 1)), kill.calls
        assert is_new or not ended
        # The run goes on: the save that was cut off is made again, and nothing is left of it.
        save_checkpoint(folder, new, groups(2), {"at": "new"})
        prune(folder, 1)
        assert [path.name for path in folder.iterdir()] == [checkpoint_path(folder, new).name]
        if ended:
            break
    assert ended
    assert {"save_file", "write_bytes", "os.fsync", "os.rename"} <= set(kill.calls)


def test_a_kill_at_every_step_of_pruning_leaves_the_newest(tmp_path: Path) -> None:
    for at in range(1, 100):
        folder = tmp_path / str(at)
        for step in (1, 2):
            save_checkpoint(folder, step, groups(step), STATE)
        with pytest.MonkeyPatch.context() as patch:
            kill = KillAt(patch, at, False)
            with suppress(Killed):
                prune(folder, 1)
        ended = kill.count < at
        latest = load_latest(folder)
        assert (latest.checkpoint.step, latest.problems) == (2, ())  # type: ignore[union-attr]
        assert all(load_checkpoint(path) for path in list_checkpoints(folder))
        prune(folder, 1)
        assert [path.name for path in folder.iterdir()] == ["step-00000002"]
        if ended:
            break
    assert ended
    assert at > 4


def test_every_byte_is_flushed_before_the_folder_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def logged_fsync(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def logged_rename(old: Path, new: Path) -> None:
        events.append(f"{Path(old).name} -> {Path(new).name}")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(os, "rename", logged_rename)
    save_checkpoint(tmp_path, 1, groups(), STATE)
    partial = ".step-00000001.partial"
    assert events == [*FILES, partial, f"{partial} -> step-00000001", tmp_path.name]


@pytest.mark.parametrize("limit", [50, 400, 9_000])
def test_a_real_limit_on_files_leaves_the_earlier_ones(tmp_path: Path, limit: int) -> None:
    """50 and 400 bytes stop the tensors' files, 9,000 the state."""
    save_checkpoint(tmp_path, 1, groups(), STATE)
    long = {**STATE, "words": list(range(3000))}
    with (
        files_limited_to(limit),
        pytest.raises(CheckpointError, match=r"step-00000002.*File too large.*of 284 bytes"),
    ):
        save_checkpoint(tmp_path, 2, groups(), long)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    save_checkpoint(tmp_path, 2, groups(), long)
    assert load_latest(tmp_path).checkpoint.step == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["os.fsync", "os.rename", "os.mkdir", "os.chmod"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_whatever_the_system_refuses_the_earlier_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    save_checkpoint(tmp_path, 1, groups(), STATE)

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(name, refused)
    with pytest.raises(CheckpointError, match=os.strerror(code)) as caught:
        save_checkpoint(tmp_path, 2, groups(), STATE)
    assert ("make room" in str(caught.value)) == (code != errno.EIO)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_the_state_is_one_json_object_that_others_can_read(original: Path) -> None:
    record = json.loads((original / STATE_FILE).read_text(encoding="utf-8"))
    assert record["state"] == STATE
    assert record["files"]["model.safetensors"]["bytes"] == (
        (original / "model.safetensors").stat().st_size
    )
    modes = {path.stat().st_mode & 0o777 for path in original.iterdir()}
    assert all(mode & 0o044 for mode in modes)
