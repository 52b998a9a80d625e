import subprocess
import sys

SHORT_TEXT = """
import sys
from firsthand.llm.tokenizer import Tokenizer
assert Tokenizer([(1, 2)]).decode(Tokenizer([(1, 2)]).encode("a short text")) == "a short text"
print("numba" in sys.modules)
"""


def test_a_short_text_does_not_wait_for_the_compiler() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHORT_TEXT], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
