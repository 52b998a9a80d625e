"""How far a preparation has come: what a killed one needs to go on.

One JSON file, replaced whole at every commit. It speaks only of what is on the disk by then: ids
that came later are cut off when the preparation goes on.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import ValidationError

from firsthand.llm.data.files import write_atomically
from firsthand.llm.data.manifest import Counts, Record, ShardEntry, reasons
from firsthand.llm.data.problems import Cursor, ManifestError

JOURNAL = "preparation.json"


class SplitProgress(Record):
    """One split: finished shards, the open one (0 tokens: none yet), and the sums so far."""

    finished: tuple[ShardEntry, ...] = ()
    open_tokens: int = 0
    open_documents: int = 0
    open_crc32: int = 0
    documents: int = 0
    bytes: int = 0
    text_hash: str = "0"


class Journal(Record):
    """All of it.

    plan: hash of the settings, the tokenizer and the source's description. fingerprint: of the
    source. cursor: file, offset, line. problems: the first of them, as text.
    """

    plan: str
    fingerprint: str
    complete: bool
    cursor: list[int]
    counts: Counts
    problems: list[str]
    splits: dict[str, SplitProgress]

    @property
    def place(self) -> Cursor:
        """Where reading goes on."""
        return Cursor(*self.cursor)


def plan_hash(*parts: str) -> str:
    """One hash for everything that the content of the shards follows from."""
    return hashlib.sha256("\0".join(parts).encode("utf-8")).hexdigest()


def write_journal(folder: Path, journal: Journal) -> None:
    """Replace the journal."""
    write_atomically(folder / JOURNAL, journal.model_dump_json().encode("utf-8"))


def read_journal(folder: Path) -> Journal | None:
    """The journal of a folder, None where there is none.

    Raises:
        ManifestError: it is damaged.
    """
    path = folder / JOURNAL
    try:
        return Journal.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ManifestError(f"{path}: {reasons(error)}; prepare with restart") from error
