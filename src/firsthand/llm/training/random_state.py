"""The random generators of a process as one JSON record, bit for bit.

The global ones too, though the stack draws from none of them: a learner's part may.

Python's and NumPy's global generators are Mersenne Twisters (Matsumoto and Nishimura 1998): 624
words and a position. PyTorch gives its states as bytes.
"""

from __future__ import annotations

import base64
import binascii
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from firsthand.llm.training.errors import TrainingError

Record = dict[str, Any]


def seed_random(seed: int) -> None:
    """Begin the global generators of Python, NumPy and PyTorch, on every device, from one seed.

    Without it a part that draws from them makes every new run another one. Python moreover seeds
    its own again in each forked process.

    Args:
        seed: 0 or above; NumPy's takes the last 32 bits of it.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


def random_state(generators: Mapping[str, Generator] | None = None) -> Record:
    """The global generators of Python, NumPy and PyTorch, and the named ones.

    The current CUDA device's generator is in it when CUDA is in use.

    Args:
        generators: PyTorch's, of the run's own, such as one for the samples.
    """
    version, words, gauss = random.getstate()
    twister: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    record = {
        "python": {"version": version, "words": _words(words), "gauss": gauss},
        "numpy": {
            "kind": twister["bit_generator"],
            "words": _words(twister["state"]["key"]),
            "position": int(twister["state"]["pos"]),
            "has_gauss": int(twister["has_gauss"]),
            "gauss": float(twister["gauss"]),
        },
        "torch": _bytes(torch.get_rng_state()),
        "generators": {name: _bytes(g.get_state()) for name, g in (generators or {}).items()},
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        record["cuda"] = _bytes(torch.cuda.get_rng_state())
    return record


def restore_random_state(
    record: Mapping[str, Any], generators: Mapping[str, Generator] | None = None
) -> None:
    """Set every generator of the record, which is as `random_state` gave it.

    A CUDA state is left out where there is no CUDA.

    Raises:
        TrainingError: a generator is missing on one side, or its state is none. Some may have
            been set by then.
    """
    named = generators or {}
    try:
        if sorted(record["generators"]) != sorted(named):
            raise TrainingError(
                f"random state: generators {sorted(record['generators'])} were saved, "
                f"this run has {sorted(named)}"
            )
        python, twister = record["python"], record["numpy"]
        random.setstate(
            (python["version"], tuple(_array(python["words"]).tolist()), python["gauss"])
        )
        key = {"key": _array(twister["words"]), "pos": twister["position"]}
        gauss = {"has_gauss": twister["has_gauss"], "gauss": twister["gauss"]}
        np.random.set_state({"bit_generator": twister["kind"], "state": key, **gauss})  # noqa: NPY002
        torch.set_rng_state(_tensor(record["torch"]))
        for name, generator in named.items():
            generator.set_state(_tensor(record["generators"][name]))
        if "cuda" in record and torch.cuda.is_available():
            torch.cuda.set_rng_state(_tensor(record["cuda"]))
    except (KeyError, TypeError, ValueError, RuntimeError, binascii.Error) as error:
        raise TrainingError(f"random state: cannot be restored: {error!r}") from error


def _words(values: Any) -> str:
    return base64.b64encode(np.asarray(values, "<u4").tobytes()).decode("ascii")


def _array(text: str) -> Any:
    return np.frombuffer(base64.b64decode(text, validate=True), "<u4").astype(np.uint32)


def _bytes(state: Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode("ascii")


def _tensor(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text, validate=True)), dtype=torch.uint8)
