"""Documents from Parquet files and from Hugging Face datasets; both need an optional package."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from firsthand.llm.data.documents import Document
from firsthand.llm.data.jsonl import text_document
from firsthand.llm.data.problems import Cursor, Problem, SourceError

PARQUET_SUFFIX = ".parquet"
_ROWS = 256


def _optional(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SourceError(f"this source needs {package}: pip install {package}") from error


def read_parquet(path: Path, name: str, start: Cursor, field: str) -> Iterator[Document | Problem]:
    """The named column of a Parquet file, a document each row, from a cursor (its offset is a row).

    Raises:
        SourceError: pyarrow is not installed.
    """
    parquet = _optional("pyarrow.parquet", "pyarrow")
    arrow = _optional("pyarrow", "pyarrow")
    end = Cursor(start.file + 1)
    row = start.offset
    try:
        with parquet.ParquetFile(path) as table:
            if field not in table.schema_arrow.names:
                columns = ", ".join(table.schema_arrow.names)
                yield Problem(name, f"no column '{field}'; the columns are {columns}", end)
                return
            first = 0
            for group in range(table.num_row_groups):
                rows = table.metadata.row_group(group).num_rows
                if first + rows > row:
                    at = first
                    for batch in table.iter_batches(
                        _ROWS, row_groups=[group], columns=[field], use_threads=False
                    ):
                        for value in batch.column(0).to_pylist():
                            if at >= row:
                                after = Cursor(start.file, at + 1, at + 1)
                                place = Problem(name, "", after, None, at + 1)
                                yield text_document(value, field, place)
                            at += 1
                first += rows
    except (OSError, arrow.ArrowException) as error:
        yield Problem(name, f"no readable Parquet: {error}", end)


class HuggingFaceDataset:
    """A dataset of the `datasets` library: by name, or a folder that `save_to_disk` wrote."""

    def __init__(
        self,
        name: str,
        *,
        field: str = "text",
        split: str = "train",
        configuration: str | None = None,
        revision: str | None = None,
        streaming: bool = True,
        data_files: str | list[str] | None = None,
    ) -> None:
        """Open the dataset; with streaming nothing is downloaded before it is read.

        Args:
            name: on the hub, a folder on disk, or a format such as "json" with data_files.
            field: the column that holds the text.
            split: by name; the library's slices ("train[:1%]") work without streaming.
            configuration, revision: as the library calls them.
            data_files: as the library calls them.
        Raises:
            SourceError: `datasets` is not installed, or it cannot open the dataset.
        """
        library = _optional("datasets", "datasets")
        self._name, self._field, self._split = name, field, split
        self._configuration, self._revision = configuration, revision
        self._data_files = [data_files] if isinstance(data_files, str) else data_files
        saved = Path(name, "state.json").is_file() or Path(name, "dataset_dict.json").is_file()
        try:
            if saved:
                opened = library.load_from_disk(name)
                self._rows = opened[split] if isinstance(opened, dict) else opened
            else:
                self._rows = library.load_dataset(
                    name,
                    configuration,
                    split=split,
                    revision=revision,
                    streaming=streaming,
                    data_files=data_files,
                )
        except Exception as error:  # the library raises of every kind, network errors among them
            raise SourceError(f"dataset {name}: cannot be opened: {error}") from error

    def describe(self) -> dict[str, object]:
        """See Source."""
        return {
            "kind": "hugging face",
            "name": Path(self._name).name if Path(self._name).is_dir() else self._name,
            "data_files": [Path(file).name for file in self._data_files or ()],
            "configuration": self._configuration,
            "revision": self._revision,
            "split": self._split,
            "field": self._field,
        }

    def fingerprint(self) -> str:
        """See Source. Streamed data has no hash of its content: name a revision to pin it."""
        return str(getattr(self._rows, "_fingerprint", None) or self._revision or self._name)

    def total_bytes(self) -> int | None:
        """See Source."""
        return None

    def documents(self, start: Cursor = Cursor()) -> Iterator[Document | Problem]:  # noqa: B008
        """See Source."""
        name = f"dataset {self._name}"
        row = start.offset
        # A dataset on disk knows its length and refuses to skip all of itself.
        if row and hasattr(self._rows, "__len__") and row >= len(self._rows):
            return
        try:
            rows = self._rows.skip(row) if row else self._rows
            for record in rows:
                row += 1
                place = Problem(name, "", Cursor(0, row, row), None, row)
                yield text_document(record.get(self._field), self._field, place)
        except Exception as error:
            raise SourceError(f"{name}, row {row + 1}: cannot be read: {error}") from error
