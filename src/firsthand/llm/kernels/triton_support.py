"""Where the Triton rungs run: on a CUDA GPU, or anywhere in Triton's interpreter.

With TRITON_INTERPRET=1 in the environment a kernel runs on a CPU, block by block in NumPy: slow,
and the same arithmetic. Importing Triton takes a while and this package does without it on a CPU,
so the kernels stand in modules of their own (`with_triton_kernels`), which are read when the first
tensor asks for them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

NEEDS = "needs Triton and a CUDA GPU of compute capability 8.0, or TRITON_INTERPRET=1"
# At each launch: a · b + c is rounded once, which from Triton 3.10 on has to be said.
FUSED = {"enable_fp_fusion": True}
# Constants of a kernel and options of its launch, by name.
Choice = dict[str, int]
_OPTIONS = ("num_warps", "num_stages")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# Capability 8.0 is the first with bfloat16.
_LEAST_CAPABILITY = (8, 0)
# A subclass, such as a tensor spread over ranks or a fake one, may have no memory here.
_PLAIN = (Tensor, torch.nn.Parameter)


@cache
def installed() -> bool:
    """Whether Triton can be imported; it is not imported."""
    return find_spec("triton") is not None


@cache
def interpreting() -> bool:
    """Whether kernels run in the interpreter, which Triton decides when they are read."""
    asked = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")
    return asked and installed()


@cache
def _serves(index: int) -> bool:
    return installed() and torch.cuda.get_device_capability(index) >= _LEAST_CAPABILITY


def device() -> str:
    """The device whose tensors the rungs take here, "cuda" or "cpu"; "" without one."""
    if interpreting():
        return "cpu"
    return "cuda" if torch.cuda.is_available() and _serves(torch.cuda.current_device()) else ""


def takes(*tensors: Tensor) -> bool:
    """Whether the Triton rungs take these: of at most 32 bits, in one device's memory.

    Not while PyTorch traces or compiles, which makes kernels of its own.
    """
    if torch.compiler.is_compiling():
        return False
    place = tensors[0].device
    if not all(type(t) in _PLAIN and t.dtype in FLOATS and t.device == place for t in tensors):
        return False
    return place.type == "cpu" if interpreting() else place.type == "cuda" and _serves(place.index)


def at(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current GPU; within this, that is the tensor's."""
    return torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]


def jit(function: Callable[..., Any]) -> Any:
    """`triton.jit`, as a typed decorator."""
    import triton

    return triton.jit(function)


def fastest(
    kernel: Any, choices: Sequence[Choice], launch: Callable[[Any], None], key: str
) -> Choice:
    """The one of several choices of constants that took least time; the kernel has run then.

    Args:
        choices: constants and options of a launch by name.
        launch: called with what stands for the kernel and chooses the constants by itself.
        key: an argument of the kernel that stays the same; Triton asks for one.
    """
    import triton

    configs = [
        triton.Config(
            {name: value for name, value in choice.items() if name not in _OPTIONS},
            **{name: value for name, value in choice.items() if name in _OPTIONS},
        )
        for choice in choices
    ]
    tuner = triton.autotune(configs, key=[key])(kernel)
    launch(tuner)
    return choices[configs.index(tuner.best_config)]


def stored(dtype: torch.dtype) -> Any:
    """Triton's name of a floating-point type."""
    import triton.language

    return getattr(triton.language, str(dtype).removeprefix("torch."))


def factor(dtype: torch.dtype) -> Any:
    """Triton's type in which values of this type are multiplied: the same.

    But its interpreter would multiply the bits of bfloat16 as if they were integers (3.6, 3.9).
    """
    return stored(torch.float32 if interpreting() and dtype == torch.bfloat16 else dtype)


def power_of_two(n: int) -> int:
    """The least one that is not below n; blocks have such sizes."""
    return 1 << max(0, n - 1).bit_length()
