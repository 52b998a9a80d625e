"""A compiled loop over rows on as many threads as PyTorch uses.

The loops hold no lock, so plain Python threads run them side by side. A pool of Numba's own would
wait for work by spinning, as PyTorch's does, and two that spin take each other's cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

# Below so many elements, waking a thread costs more than the loop.
LEAST_ELEMENTS = 1 << 17
# A subclass, such as a tensor spread over ranks or a fake one, may have no memory here.
_PLAIN = (Tensor, torch.nn.Parameter)
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
    calls = [_workers().submit(kernel, *span, *arguments) for span in others]
    kernel(*first, *arguments)
    for call in calls:
        call.result()


def ranges(rows: int, elements: int) -> list[tuple[int, int]]:
    """The rows of each thread, first and behind the last; at least one range."""
    threads = max(1, min(torch.get_num_threads(), rows, elements // LEAST_ELEMENTS))
    edges = [rows * thread // threads for thread in range(threads + 1)]
    return list(pairwise(edges))


def _workers() -> ThreadPoolExecutor:
    if not _pool:
        _pool.append(ThreadPoolExecutor((os.cpu_count() or 1), "kernel"))
    return _pool[0]


# A fork copies the pool but not its threads.
os.register_at_fork(after_in_child=_pool.clear)


def compiles(*tensors: Tensor) -> bool:
    """Whether the Numba rungs take these: float32 values in the memory of a CPU.

    Not while PyTorch traces or compiles, nor under autocast, which asks for other types; and not
    a few values without a gradient, as in generation token by token, where the call costs most.
    """
    return (
        (tensors[0].numel() >= LEAST_ELEMENTS or torch.is_grad_enabled())
        and all(type(t) in _PLAIN and t.dtype == torch.float32 and t.is_cpu for t in tensors)
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


def array(tensor: Tensor) -> NDArray[Any]:
    """The tensor's memory as (rows, width), copied only if it does not lie in one piece."""
    detached = tensor.detach().contiguous()
    return detached.view(-1, tensor.shape[-1]).numpy()
