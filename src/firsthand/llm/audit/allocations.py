"""The measured peak of a training step, by PyTorch's own record.

On a GPU PyTorch's allocator keeps the peak. On a CPU its profiler hears of every allocation and
release, those inside of kernels too; they are added up here from before the model is made, so the
sum is what lives. A dispatch mode sees the tensors that operations return, with the code that asked
for them, but not buffers within a kernel; and while it watches, PyTorch's engine adds gradients
into new arrays instead of in place, because Python holds them too. So the profiler's sum counts,
and `dispatched_peak` is its check, for passes without gradients.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from firsthand.llm.audit.errors import AuditError
from firsthand.llm.data.loading import TokenStream
from firsthand.llm.model.parts import Parts
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.training.assembly import assemble
from firsthand.llm.training.config import RunConfig
from firsthand.llm.training.distributed import World
from firsthand.llm.training.journal import NoJournal
from firsthand.llm.training.loop import train
from firsthand.llm.training.next_token import Corpus, NextToken

# What the first update leaves behind would show in the second one.
STEPS = 2


def measured_peak(config: RunConfig, parts: Parts, *, device: str = "cpu") -> int:
    """The most bytes that live at once in two updates of the loop, on random tokens.

    Validation, samples and checkpoints are left out, gradient flow is recorded in each update if
    the config has a `flow_every`. With `data.documents` rows hold one document each.

    Args:
        config: of the run; its data table is not read.
        parts: the code, such as `firsthand.llm.parts.FAST`.
        device: "cpu", or "cuda" for the current GPU.
    Raises:
        AuditError: a GPU that is not there.
    """
    settings = config.training
    quiet = replace(
        settings,
        steps=STEPS,
        evaluate_every=0,
        sample_every=0,
        save_every=0,
        flow_every=1 if settings.flow_every else 0,
    )
    config = replace(config, training=quiet)
    if device == "cpu":
        return recorded_peak(lambda: _train(config, parts, torch.device("cpu")))
    if not torch.cuda.is_available():
        raise AuditError("there is no GPU that PyTorch can use; measure on the CPU")
    place = torch.device("cuda", torch.cuda.current_device())
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(place)
    torch.cuda.reset_peak_memory_stats(place)
    _train(config, parts, place)
    return torch.cuda.max_memory_allocated(place) - before


def recorded_peak(run: Callable[[], object]) -> int:
    """The most bytes of a CPU's tensors that `run` made and held at once, by PyTorch's profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    # Typed as Any: the profiler's own tables leave out the order.
    results: Any = record.profiler.kineto_results
    changes = [event for event in results.events() if event.name() == "[memory]"]
    total = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        total += change.nbytes()
        peak = max(peak, total)
    return int(peak)


def dispatched_peak(run: Callable[[], object]) -> int:
    """The same by watching every operation's results; without what kernels allocate inside."""
    with _Watch() as watch:
        run()
    peak: int = watch.peak
    return peak


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Storages from the operation that returned them to the end of their last tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = self.peak = 0
        self._live: dict[int, int] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        # Memory of NumPy's is lifted, not allocated; a view has that of its base.
        if function is not torch.ops.aten.lift_fresh.default:
            given = {x.untyped_storage()._cdata for x in _tensors((args, kwargs))}
            for tensor in _tensors(result):
                self._note(tensor.untyped_storage(), given)
        return result

    def _note(self, storage: Any, given: set[int]) -> None:
        number = storage._cdata
        if number in self._live or number in given:
            return
        self._live[number] = storage.nbytes()
        self.total += storage.nbytes()
        self.peak = max(self.peak, self.total)
        weakref.finalize(storage, self._forget, number)

    def _forget(self, number: int) -> None:
        self.total -= self._live.pop(number, 0)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class _Random(NextToken):
    """Random tokens, and nothing to validate."""

    def validate(self, model: Transformer, batches: int) -> dict[str, float | int | None]:
        """Nothing."""
        return {}

    def samples(self, model: Transformer, step: int) -> list[dict[str, Any]]:
        """None."""
        return []


def _train(config: RunConfig, parts: Parts, device: torch.device) -> None:
    vocabulary = config.model.vocab_size
    ids = np.random.default_rng(0).integers(
        vocabulary, size=2 * config.tokens_per_step + 2, dtype=np.uint32
    )
    stream = TokenStream([ids], 0)
    corpus = Corpus(stream, stream, np.ones(vocabulary, np.int64))
    world = World(0, 1, device)
    model = Transformer(config.model, parts, seed=config.seed)
    if device.type == "cuda":
        model.to(device)
    train(assemble(config, model, _Random(corpus, config, world), world, NoJournal()))
