"""Run in a child: the Triton kernels compiled for a Hopper GPU, which needs none to be there.

The interpreter is more lenient than the compiler, and knows no registers. Prints one JSON object:
for each kernel the bytes it spills, its shared memory and which instructions it has, or the error.
With `all` it takes every tile of the tables of attention, else one for each kernel.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from firsthand.llm.kernels import triton_support
from firsthand.llm.kernels.attention.with_triton import EXACT, ROUNDED, TILES

HOPPER = GPUTarget("cuda", 90, 32)
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
FLOAT32 = {"log_sums", "deltas", "roots", "partial", "losses", "weight", "cos", "sin"}
INTEGERS = {"targets": "*i64", "table": "*i64", "owners": "*i32"}
POINTERS = {"q", "k", "v", "output", "dout", "dq", "dk", "dv", "x", "dx", "cotangent", "both"}
POINTERS |= {"gradient", "logits"}
NUMBERS = {"scale", "root", "eps", "sign", "beta1", "share1", "beta2", "share2", "floor", "rate"}
NUMBERS |= {"decay"}
# Lengths and strides that are multiples of 16 in what is timed; these are not.
UNEVEN = {"heads", "kv_heads", "rows"}


def compiled(kernel: Any, short: str, constants: dict[str, Any], **options: int) -> dict[str, Any]:
    signature, attributes, values = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], values[(place,)] = "constexpr", constants[name]
        elif name in NUMBERS:
            signature[name] = "fp32"
        else:
            kind = INTEGERS.get(name) or ("*fp32" if name in FLOAT32 else "")
            signature[name] = kind or (f"*{short}" if name in POINTERS else "i32")
            if name not in UNEVEN:
                attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
    made = triton.compile(source, target=HOPPER, options={**options, **triton_support.FUSED})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(made.asm["cubin"])
        words = [TOOLS / "cuobjdump", "--dump-resource-usage", file.name]
        usage = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    stack = re.search(r"STACK:(\d+)", usage)
    assert stack is not None, usage
    return {
        "stack": int(stack[1]),
        "shared": made.metadata.shared,
        "wgmma": "wgmma.mma_async" in made.asm["ptx"],
        "vectors": len(re.findall(r"(?:ld|st)\.global\S*\.v4", made.asm["ptx"])),
    }


def attention(every: bool) -> Iterator[tuple[str, Any, str, dict[str, Any], dict[str, int]]]:
    kernels = import_module("firsthand.llm.kernels.attention.with_triton_kernels")
    half, full = torch.bfloat16, torch.float32
    runs: list[tuple[str, int, torch.dtype, tuple[int, ...]]] = []
    for name, table in TILES.items():
        runs += [(name, w, half, tile) for w, tiles in table.items() for tile in tiles]
        runs += [(name, 128, full, tile) for tile in (*EXACT, *ROUNDED)]
    if not every:
        # A padded width and an uneven length, in tiles that leave registers for their masks.
        runs = [
            (name, 48, half, (32, 64, 4, 2) if name == "backward_keys" else (64, 32, 4, 2))
            for name in TILES
        ]
    for name, width, dtype, (m, n, warps, stages) in runs:
        short = "bf16" if dtype == half else "fp32"
        constants = {
            "GROUP": 2 if width == 48 else 1,
            "WIDTH": width,
            "WIDE": triton_support.power_of_two(width),
            "FACTOR": triton_support.factor(dtype),
            "PRECISION": "ieee" if (m, n, warps, stages) in EXACT else "tf32",
            "RAGGED": width == 48,
            "M": m,
            "N": n,
        }
        label = f"attention.{name}-{width}-{short}-{m}x{n}-{warps}-{stages}"
        kernel = getattr(kernels, name)
        yield label, kernel, short, constants, {"num_warps": warps, "num_stages": stages}


def others() -> Iterator[tuple[str, Any, str, dict[str, Any], dict[str, int]]]:
    stored = triton_support.stored(torch.float32)
    constants: dict[str, dict[str, Any]] = {
        "norms.forward": {"WIDTH": 768, "WIDE": 1024, "ROWS": 4},
        "norms.backward": {"WIDTH": 768, "WIDE": 1024, "ROWS": 4},
        "rope.turn": {"HALF": 32, "WIDE": 32, "INTERLEAVED": False, "ROWS": 32},
        "rope.turn-pairs": {"HALF": 32, "WIDE": 32, "INTERLEAVED": True, "ROWS": 32},
        "swiglu.forward": {"WIDTH": 2048, "PIECE": 1024},
        "swiglu.backward": {"WIDTH": 2048, "PIECE": 1024},
        "cross_entropy.errors": {"PIECE": 4096, "WANTED": True},
        "adamw.update": {**dict.fromkeys("PGMV", stored), "BLOCK": 2048},
    }
    for label, values in constants.items():
        folder, function = label.split("-")[0].split(".")
        module = import_module(f"firsthand.llm.kernels.{folder}.with_triton_kernels")
        warps = 8 if folder in ("norms", "cross_entropy") else 4
        yield label, getattr(module, function), "bf16", values, {"num_warps": warps}


def main() -> None:
    every = "all" in sys.argv[1:]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        for label, kernel, short, constants, options in [*others(), *attention(every)]:
            try:
                found[label] = compiled(kernel, short, constants, **options)
            except Exception as error:
                found[label] = f"{type(error).__name__}: {error}"[-2000:]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
