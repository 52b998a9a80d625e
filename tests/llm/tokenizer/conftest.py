"""Real and awkward text for the tests of the tokenizer."""

import sysconfig
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
SHARED_FILES = ("wikitext2-valid.txt", "tinyshakespeare.txt", "gsm8k-train.jsonl")


@pytest.fixture(scope="session")
def library() -> tuple[str, ...]:
    """Modules of the standard library in sorted order, some 400 KB."""
    texts: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        texts.append(path.read_text(encoding="utf-8"))
        if sum(map(len, texts)) > 400_000:
            break
    return tuple(texts)


@pytest.fixture(scope="session")
def shared_texts() -> tuple[str, ...]:
    """The starts of prose, verse and JSON lines; nothing where the data is not at hand."""
    paths = [SHARED / name for name in SHARED_FILES]
    return tuple(path.read_text(encoding="utf-8")[:300_000] for path in paths if path.exists())


@pytest.fixture(scope="session")
def awkward() -> tuple[str, ...]:
    """Short texts on which patterns and merges easily go wrong."""
    return (
        "",
        " ",
        "   ",
        "\n",
        " \n \n  x",
        "\r\n\r\n x",
        "a  b\t\tc \u00a0 d\u3000 e",
        "I'll we're they've it's I'm he'd don't 'tis 'S 'LL 'ſ",
        "12345678 ½ Ⅷ ٣٤٥ 1a2b",
        "Grüße, 世界! Привет мир… नमस्ते 👩‍👩‍👧 e\u0301",
        "x" * 300,
        "ab" * 200,
        "=" * 100 + "\n" * 5 + "-" * 17,
        "\x00\x01\x7f\x85\u2028",
        "'",
        "''",
        "'l",
        "'ll'",
        " '",
        " 's",
        "\t's",
        "def f(x):\n        return x  # ok\n\n\n    end",
    )
