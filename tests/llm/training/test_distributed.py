"""Several ranks train as one process does, and go on from each other's checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from firsthand.llm.training.distributed import World, pick_device
from firsthand.llm.training.errors import TrainingError
from firsthand.llm.training.next_token import rows_of_rank

Losses = dict[str, dict[str, float]]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the ranks are forked")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Losses:
    script = Path(__file__).parent / "ranks.py"
    place = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, str(script), str(place)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    losses: Losses = json.loads(done.stdout.splitlines()[-1])
    return losses


def same(ours: dict[str, float], theirs: dict[str, float]) -> None:
    assert ours.keys() <= theirs.keys()
    for name, loss in ours.items():
        assert loss == pytest.approx(theirs[name], rel=1e-5), name


@pytest.mark.parametrize("name", ["micro", "ddp", "fsdp", "fsdp micro"])
def test_ranks_and_micro_batches_change_no_loss(found: Losses, name: str) -> None:
    assert len(found["one"]) == 10  # eight of training, two of validation
    assert found[name].keys() == found["one"].keys()
    same(found[name], found["one"])


def test_training_learns(found: Losses) -> None:
    assert found["long"]["train 16"] < 0.85 * found["long"]["train 1"]


@pytest.mark.parametrize("name", ["fsdp 2 to 1", "fsdp 3 to 2", "one to fsdp 2", "ddp 2 to 3"])
def test_a_checkpoint_resumes_on_another_number_of_ranks(found: Losses, name: str) -> None:
    assert min(int(key.split()[1]) for key in found[name]) == 9
    same(found[name], found["long"])


def test_rows_are_shared_evenly_or_not_at_all() -> None:
    assert rows_of_rank(32, 0, 1) == (32, 1)
    assert rows_of_rank(32, 8, 2) == (8, 2)
    with pytest.raises(TrainingError, match="2 ranks; 6 can"):
        rows_of_rank(7, 0, 2)
    with pytest.raises(TrainingError, match="micro-batches of 8; 32 can"):
        rows_of_rank(24, 8, 2)


def test_a_device_that_is_not_there_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    for name in ("cuda", "cuda:7", "nonsense"):
        with pytest.raises(TrainingError, match=name):
            pick_device(name)
    assert pick_device("auto").type == "cpu"


def test_a_world_of_one_sums_itself() -> None:
    assert World(0, 1, torch.device("cpu")).sums([1.5, 2]) == [1.5, 2]
