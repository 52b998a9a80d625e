"""A compiled loop over rows on several threads: PyTorch's own where they can be had.

PyTorch's threads wait for their next operation by spinning, for milliseconds, and another thread
on such a core gets half of it at best. So a loop runs on them (`team`). Where PyTorch's library of
threads is another one, it takes plain Python threads, which the loops let run side by side: the
caller's core and those on which nothing spins.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from firsthand.llm.kernels import team
from firsthand.resources import usable_cores

# Below so many elements, waking a thread costs more than the loop.
LEAST_ELEMENTS = 1 << 17
# One compiled thread is worth about so many that run PyTorch's operations one after another.
WORTH = 4
# A subclass, such as a tensor spread over ranks or a fake one, may have no memory here.
_PLAIN = (Tensor, torch.nn.Parameter)
_TYPES = {torch.float32: np.dtype(np.float32).str, torch.int64: np.dtype(np.int64).str}
_pool: list[ThreadPoolExecutor] = []


def by_rows(kernel: Callable[..., Any], rows: int, elements: int, *arguments: Any) -> None:
    """Call kernel(first, last, *arguments) for ranges that together cover the rows.

    Args:
        kernel: compiled without the lock; what it does to a row must not depend on another.
        rows: how many there are.
        elements: in all of them, which decides whether threads pay.
        arguments: the same for each call.
    """
    first, *others = ranges(rows, elements)
    if others and team.run(kernel, len(others) + 1, rows, arguments):
        return
    calls = [_workers().submit(kernel, *span, *arguments) for span in others]
    kernel(*first, *arguments)
    for call in calls:
        call.result()


def usable_threads() -> int:
    """PyTorch's; without its team the caller's and one for each core that it leaves free."""
    of_torch = torch.get_num_threads()
    if team.available():
        return of_torch
    return max(1, min(of_torch, _cores() - of_torch + 1))


def ranges(rows: int, elements: int) -> list[tuple[int, int]]:
    """The rows of each thread, first and behind the last; at least one range."""
    threads = max(1, min(usable_threads(), rows, elements // LEAST_ELEMENTS))
    edges = [rows * thread // threads for thread in range(threads + 1)]
    return list(pairwise(edges))


@cache
def _cores() -> int:
    """Asked once: it reads files, and each call of a loop wants to know."""
    return usable_cores()


def _workers() -> ThreadPoolExecutor:
    if not _pool:
        _pool.append(ThreadPoolExecutor(_cores(), "kernel"))
    return _pool[0]


# A fork copies the pool but not its threads.
os.register_at_fork(after_in_child=_pool.clear)


def pays() -> bool:
    """Whether the Numba rungs are of use now.

    Not while PyTorch traces or compiles, and not where it has so many threads that its rungs are
    faster.
    """
    return not torch.compiler.is_compiling() and torch.get_num_threads() <= WORTH * usable_threads()


def plain_float32(tensor: Tensor) -> bool:
    """Whether it is float32 values in the memory of a CPU."""
    return type(tensor) in _PLAIN and tensor.dtype == torch.float32 and tensor.is_cpu


def compiles(*tensors: Tensor) -> bool:
    """Whether the Numba rungs take these: `plain_float32`, where it `pays`.

    Not under autocast, which asks for other types; and not a few values without a gradient, as in
    generation token by token, where the call costs most.
    """
    return (
        pays()
        and (tensors[0].numel() >= LEAST_ELEMENTS or torch.is_grad_enabled())
        and all(map(plain_float32, tensors))
        and not torch.is_autocast_enabled("cpu")
    )


class _Memory:
    """What NumPy reads of a tensor; unlike `Tensor.numpy`, it leaves the storage resizable.

    Sharded training frees a parameter's storage between its uses.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.__array_interface__ = {
            "version": 3,
            "data": (tensor.data_ptr(), False),
            "shape": tuple(tensor.shape),
            "typestr": _TYPES[tensor.dtype],
        }


def memory(tensor: Tensor) -> NDArray[Any]:
    """The tensor's memory, in its shape; float32 or int64, copied if it lies not in one piece."""
    detached = tensor.detach().contiguous()
    # NumPy takes no empty array at the address 0.
    if not detached.numel():
        return np.empty(detached.shape, _TYPES[detached.dtype])
    return np.asarray(_Memory(detached))


def array(tensor: Tensor) -> NDArray[Any]:
    """As `memory`, as (rows, width)."""
    return memory(tensor).reshape(-1, tensor.shape[-1])
