import os
import subprocess
import sys
from pathlib import Path

import numba
import pytest

from firsthand.llm.tokenizer import compiling

SHORT_TEXT = """
import sys
from firsthand.llm.tokenizer import Tokenizer
assert Tokenizer([(1, 2)]).decode(Tokenizer([(1, 2)]).encode("a short text")) == "a short text"
print("numba" in sys.modules)
"""


def test_the_stamp_changes_with_any_file_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "b.py").write_text("y = 1\n")
    first = compiling.source_stamp(tmp_path)
    assert compiling.source_stamp(tmp_path) == first
    os.utime(tmp_path / "b.py", ns=(1, 1))
    second = compiling.source_stamp(tmp_path)
    (tmp_path / "a.py").write_text("x = 12\n")
    assert len({first, second, compiling.source_stamp(tmp_path)}) == 3


def test_the_stamp_is_part_of_the_cache() -> None:
    from firsthand.llm.tokenizer.pieces import rehash

    stamp = rehash._cache._cache_file._source_stamp
    assert stamp[1] == compiling.source_stamp(Path(compiling.__file__).parent)


def test_without_a_folder_for_the_cache_functions_are_compiled_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nowhere(dispatcher: object) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(numba.core.dispatcher.Dispatcher, "enable_caching", nowhere)

    @compiling.compiled
    def double(number: int) -> int:
        return 2 * number

    assert double(21) == 42
    assert double.signatures


def test_a_short_text_does_not_wait_for_the_compiler() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHORT_TEXT], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
