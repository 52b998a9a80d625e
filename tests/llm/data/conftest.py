"""A byte-level tokenizer behind the real one's interface, so that a test knows every id."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from firsthand.llm.data.manifest import Manifest
from firsthand.llm.data.preparation import prepare
from firsthand.llm.data.sources import Texts

END = 256


class ByteTokenizer:
    """Bytes are their own ids; the special token <|endoftext|> is 256."""

    def __init__(self, vocabulary_size: int = 257) -> None:
        self.vocabulary_size = vocabulary_size
        self.special_tokens = {"<|endoftext|>": END}

    @property
    def hash(self) -> str:
        return hashlib.sha256(b"bytes %d" % self.vocabulary_size).hexdigest()

    def encode_documents(
        self, texts: Iterable[str | bytes]
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        parts = [text if isinstance(text, bytes) else text.encode() for text in texts]
        ids = np.frombuffer(b"".join(parts), np.uint8).astype(np.uint32)
        return ids, np.cumsum([len(part) for part in parts], dtype=np.int64)

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < END).decode("utf-8", "replace")

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"vocabulary_size": self.vocabulary_size}), encoding="utf-8")


@pytest.fixture
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


@pytest.fixture
def wide_tokenizer() -> ByteTokenizer:
    return ByteTokenizer(70_000)


@pytest.fixture
def words() -> list[str]:
    """Sixty different texts, some with characters of several bytes."""
    return [f"text {n}: " + "añ€😀 word " * (n % 7 + 1) + f"end of {n}" for n in range(60)]


@pytest.fixture
def prepared(tmp_path: Path, tokenizer: ByteTokenizer) -> Callable[..., tuple[Path, Manifest]]:
    """Prepare texts with the byte tokenizer into a new folder."""

    def run(texts: list[str], **settings: object) -> tuple[Path, Manifest]:
        folder = tmp_path / f"prepared-{len(list(tmp_path.iterdir()))}"
        settings = {"processes": 1, **settings}
        return folder, prepare(Texts("test", lambda: texts), tokenizer, folder, **settings)  # type: ignore[arg-type]

    return run
