"""Run in a child with TRITON_INTERPRET=1: each Triton rung against its ladder's float64 oracle.

Prints one JSON object: for each case how far each result is from the oracle's, in units of the
inputs' epsilon times the largest number of that result. The parent knows what is too far.
"""

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from firsthand.llm.kernels.adamw import ladder as adamw_ladder
from firsthand.llm.kernels.adamw import with_triton
from firsthand.llm.kernels.attention import with_triton as attention_module
from firsthand.llm.kernels.ladder import Ladder, Shape
from firsthand.llm.kernels.ladders import LADDERS

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
Distances = list[float]


def distance(got: Tensor, wanted: Any, dtype: torch.dtype) -> float:
    largest = max(1.0, float(np.abs(wanted).max()))
    away = np.abs(got.detach().double().cpu().numpy() - wanted).max()
    return float(away / largest / torch.finfo(dtype).eps)


def against_oracle(ladder: Ladder, shape: Shape, dtype: str, strided: bool = False) -> Distances:
    """Output and gradients, from inputs that the type holds exactly."""
    generator = np.random.default_rng(7)
    inputs = ladder.inputs(shape, generator)
    low: dict[str, Any] = {
        name: torch.tensor(a, dtype=DTYPES[dtype]) if a.dtype.kind == "f" else torch.tensor(a)
        for name, a in inputs.items()
    }
    exact = {n: (t.double() if t.is_floating_point() else t).numpy() for n, t in low.items()}
    if strided:
        low = {n: wide(t) if n in ladder.differentiable else t for n, t in low.items()}
    for name in ladder.differentiable:
        low[name].requires_grad_()
    rung = next(rung for rung in ladder.rungs if rung.name.startswith("triton"))
    output = rung.forward(**low)
    cotangent = torch.tensor(generator.standard_normal(output.shape), dtype=output.dtype)
    given = wide(cotangent) if strided and cotangent.ndim else cotangent
    gradients = torch.autograd.grad(output, [low[n] for n in ladder.differentiable], given)
    wanted = ladder.oracle(**exact, cotangent=cotangent.double().numpy())
    assert all(g.dtype == DTYPES[dtype] for g in gradients)
    results = zip([output, *gradients], wanted, strict=True)
    return [distance(g, w, DTYPES[dtype]) for g, w in results]


def wide(tensor: Tensor) -> Tensor:
    """The same values with gaps between rows, and between heads where there are any."""
    if tensor.ndim == 4:
        batch, heads, length, width = tensor.shape
        lies = tensor.new_zeros(batch, length, heads + 1, width + 8)
        lies[:, :, :heads, :width] = tensor.transpose(1, 2)
        return lies[:, :, :heads, :width].transpose(1, 2).detach()
    lies = tensor.new_zeros(*tensor.shape[:-1], tensor.shape[-1] + 3)
    lies[..., : tensor.shape[-1]] = tensor
    return lies[..., : tensor.shape[-1]].detach()


def sizes(queries: int, keys: int, heads: int, group: int, width: int) -> Shape:
    return {
        "batch": 1 if queries > 64 else 2,
        "heads": heads * group,
        "kv_heads": heads,
        "queries": queries,
        "keys": keys,
        "width": width,
    }


ATTENTION = [
    ("float32", sizes(65, 65, 1, 2, 32)),
    ("float32", sizes(17, 20, 1, 4, 48)),
    ("float32", sizes(63, 130, 1, 1, 64)),
    ("float32", sizes(2, 33, 2, 1, 16)),
    ("float16", sizes(33, 33, 2, 2, 80)),
    ("float16", sizes(130, 130, 1, 1, 128)),
    ("bfloat16", sizes(65, 66, 1, 2, 64)),
    ("bfloat16", sizes(64, 64, 1, 1, 128)),
    ("bfloat16", sizes(1, 5, 1, 1, 80)),
]
OTHERS: list[tuple[str, Shape]] = [
    ("rms_norm", {"rows": 9, "width": 40}),
    ("rms_norm", {"rows": 70, "width": 320}),
    ("rms_norm", {"rows": 3, "width": 1}),
    ("rope_half", {"batch": 2, "heads": 3, "positions": 37, "width": 12}),
    ("rope_interleaved", {"batch": 2, "heads": 3, "positions": 37, "width": 12}),
    ("swiglu", {"rows": 3, "width": 1100}),
    ("cross_entropy", {"tokens": 13, "width": 8, "vocabulary": 5003}),
    ("cross_entropy", {"tokens": 5, "width": 3, "vocabulary": 1}),
]


def adamw(dtype: str) -> Distances:
    """Tensors around a block's length, an empty one, and one that begins off a boundary."""
    block = with_triton.BLOCK
    lengths = [block - 1, block, block + 1, 0, 1, 7]
    inputs = adamw_ladder.inputs({"elements": sum(lengths)}, np.random.default_rng(7))
    low = {name: torch.tensor(a, dtype=DTYPES[dtype]) for name, a in inputs.items()}
    wanted = adamw_ladder.oracle(**{name: t.double().numpy() for name, t in low.items()})
    lists = [[piece.clone() for piece in t.split(lengths)] for t in low.values()]
    for pieces in lists:
        pieces[-1] = torch.cat([pieces[-1][:1], pieces[-1]])[1:]
    versions = [piece._version for piece in lists[0]]
    with_triton.adamw(*lists, step=adamw_ladder.STEP, **adamw_ladder.NUMBERS)
    changed = zip(lists[0], versions, strict=True)
    assert all(piece._version > before for piece, before in changed if piece.numel())
    got = [torch.cat(lists[index]) for index in (0, 2, 3)]
    return [distance(g, w, DTYPES[dtype]) for g, w in zip(got, wanted, strict=True)]


def tiles() -> Distances:
    """Tiles that are higher than wide and the other way round give the same."""
    shape = sizes(70, 75, 1, 1, 16)
    found: Distances = []
    kept = dict(attention_module.INTERPRETED)
    for tile in ((16, 64), (64, 16)):
        attention_module.INTERPRETED.update(dict.fromkeys(kept, tile))
        attention_module._best.clear()
        found += against_oracle(LADDERS["attention"], shape, "float32")
    attention_module.INTERPRETED.update(kept)
    attention_module._best.clear()
    return found


def large_scores() -> Distances:
    """Scores of some thousands: the running maximum keeps every exponential finite."""
    ladder = LADDERS["attention"]
    generator = np.random.default_rng(3)
    inputs = ladder.inputs(sizes(40, 40, 1, 1, 16), generator)
    inputs["q"] *= 1000.0
    low = {name: torch.tensor(a, dtype=torch.float32) for name, a in inputs.items()}
    wanted = ladder.oracle(
        **{n: t.double().numpy() for n, t in low.items()}, cotangent=np.ones_like(inputs["q"])
    )
    return [distance(attention_module.attention(**low), wanted[0], torch.float32)]


def cases() -> Iterator[tuple[str, Callable[[], Distances]]]:
    for dtype, shape in ATTENTION:
        name = "attention-{queries}x{keys}-{heads}/{kv_heads}-{width}".format(**shape)
        yield f"{name}-{dtype}", lambda s=shape, d=dtype: against_oracle(LADDERS["attention"], s, d)
    for dtype in ("float32", "bfloat16"):
        yield (
            f"attention-strided-{dtype}",
            lambda d=dtype: against_oracle(
                LADDERS["attention"], sizes(19, 35, 2, 2, 24), d, strided=True
            ),
        )
    yield "attention-tiles-float32", tiles
    yield "attention-large-float32", large_scores
    for operation, shape in OTHERS:
        for dtype in DTYPES:
            label = "x".join(str(n) for n in shape.values())
            yield (
                f"{operation}-{label}-{dtype}",
                lambda o=operation, s=shape, d=dtype: against_oracle(LADDERS[o], s, d),
            )
    for operation in ("rms_norm", "rope_half", "rope_interleaved", "swiglu"):
        shape = next(shape for name, shape in OTHERS if name == operation)
        yield (
            f"{operation}-strided-float32",
            lambda o=operation, s=shape: against_oracle(LADDERS[o], s, "float32", strided=True),
        )
    for dtype in DTYPES:
        yield f"adamw-{dtype}", lambda d=dtype: adamw(d)


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name, measure in cases():
        try:
            found[name] = measure()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
