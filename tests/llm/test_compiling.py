"""What is compiled is cached, and stale once any file changes whose code may be in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numba
import pytest

from firsthand.llm import compiling
from firsthand.llm.kernels import compiling as kernels
from firsthand.llm.kernels.norms import with_numba
from firsthand.llm.tokenizer import compiling as tokenizer
from firsthand.llm.tokenizer.pieces import rehash

OWN = Path(compiling.__file__)


def _tree(root: Path, *names: str) -> list[Path]:
    files = [root / name for name in names]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x = 1\n")
    return files


def test_the_stamp_changes_with_any_of_the_files(tmp_path: Path) -> None:
    files = _tree(tmp_path, "a.py", "b.py")
    first = compiling.source_stamp(files)
    assert compiling.source_stamp(reversed(files)) == first
    os.utime(files[1], ns=(1, 1))
    second = compiling.source_stamp(files)
    files[0].write_text("x = 12\n")
    assert len({first, second, compiling.source_stamp(files)}) == 3


def test_a_loop_of_the_tokenizer_is_stale_with_any_file_of_its_folder() -> None:
    stamp = rehash._cache._cache_file._source_stamp
    files = [*Path(tokenizer.__file__).parent.glob("*.py"), OWN]
    assert stamp[1] == compiling.source_stamp(files)
    assert any(name.endswith("scan.py") for name, _, _ in stamp[1])


def test_a_loop_of_a_rung_is_stale_with_the_file_of_another() -> None:
    dispatcher = numba.core.dispatcher.Dispatcher
    loops = [found for found in vars(with_numba).values() if isinstance(found, dispatcher)]
    assert loops
    for loop in loops:
        names = [Path(name) for name, _, _ in loop._cache._cache_file._source_stamp[1]]
        assert Path(kernels.__file__).parent / "exponential.py" in names
        assert Path(kernels.__file__).parent / "swiglu" / "with_numba.py" in names
        assert OWN in names


def test_a_folder_below_covers_the_kernels_and_itself(tmp_path: Path) -> None:
    low = _tree(tmp_path, "kernels/exponential.py", "kernels/int8_matmul/panels.py")
    own = _tree(tmp_path, "inference/decoding.py", "inference/server/queue.py")
    _tree(tmp_path, "model/block.py", "parts.py")
    for file in own:
        assert set(kernels.sources_of(file, tmp_path)) == {*low, *own}
    for file in (low[1], tmp_path / "parts.py", tmp_path.parent / "elsewhere.py"):
        assert set(kernels.sources_of(file, tmp_path)) == set(low)


@pytest.mark.parametrize("compiled", [tokenizer.compiled, kernels.compiled])
def test_without_a_folder_for_the_cache_functions_are_compiled_all_the_same(
    compiled: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(dispatcher: object) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(numba.core.dispatcher.Dispatcher, "enable_caching", nowhere)

    @compiled  # type: ignore[operator]
    def double(number: int) -> int:
        return 2 * number

    assert double(21) == 42
    assert double.signatures


def test_compiling_does_without_pytorch() -> None:
    code = "import sys, firsthand.llm.kernels.compiling; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
