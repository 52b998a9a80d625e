import json
import sys
from pathlib import Path

import pytest

from firsthand.llm.data import text_files
from firsthand.llm.data.documents import PIECE_BYTES, Document
from firsthand.llm.data.embedded import EmbeddedCorpus
from firsthand.llm.data.problems import Cursor, Problem, SourceError
from firsthand.llm.data.sources import LocalFiles, Source, Texts
from firsthand.llm.data.tables import HuggingFaceDataset


def texts_of(source: Source, start: Cursor = Cursor()) -> list[str]:  # noqa: B008
    return [
        b"".join(item.pieces()).decode() if isinstance(item, Document) else str(item)
        for item in source.documents(start)
    ]


def documents_of(source: Source, start: Cursor = Cursor()) -> list[Document]:  # noqa: B008
    return [item for item in source.documents(start) if isinstance(item, Document)]


def assert_goes_on_from_every_cursor(source: Source) -> None:
    items = list(source.documents(Cursor()))
    assert len(items) > 3
    for number, item in enumerate(items, 1):
        rest = list(source.documents(item.after))
        assert [str(a.place if isinstance(a, Document) else a) for a in rest] == [
            str(b.place if isinstance(b, Document) else b) for b in items[number:]
        ]
        assert [a.after for a in rest] == [b.after for b in items[number:]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "texts"
    (root / "b").mkdir(parents=True)
    (root / ".hidden").mkdir()
    (root / "z.txt").write_text("last")
    (root / "a.txt").write_text("first\r\nline\n")
    (root / "b" / "c.md").write_text("middle é", encoding="utf-8")
    (root / "b" / "d.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\r\n{"text": "three"}')
    (root / ".hidden" / "e.txt").write_text("unseen")
    return root


def test_a_folder_is_read_in_the_order_of_names(folder: Path) -> None:
    source = LocalFiles([folder])
    expected = ["first\r\nline\n", "middle é", "one", "two", "three", "last"]
    assert texts_of(source) == expected
    assert_goes_on_from_every_cursor(source)
    assert source.total_bytes() == sum(
        path.stat().st_size
        for path in folder.rglob("*.*")
        if path.is_file() and "hidden" not in str(path)
    )
    assert texts_of(LocalFiles([folder], suffixes=[".txt"])) == ["first\r\nline\n", "last"]
    assert texts_of(LocalFiles([folder / "z.txt", folder / "a.txt"])) == ["last", "first\r\nline\n"]


def test_what_cannot_be_read_at_all_is_refused(folder: Path) -> None:
    for paths, reason in (
        ([folder / "none"], "none: no such file"),
        ([], "empty list of paths: no files"),
    ):
        with pytest.raises(SourceError, match=reason):
            LocalFiles(paths)
    with pytest.raises(SourceError, match="texts: no files to read"):
        LocalFiles([folder], suffixes=[".rs"])
    with pytest.raises(SourceError, match="unknown encoding: utf-17"):
        LocalFiles([folder], encoding="utf-17")
    with pytest.raises(ValueError, match="needs UTF-8"):
        LocalFiles([folder], encoding="latin-1", unit="line")


def test_the_fingerprint_follows_the_files(folder: Path) -> None:
    before = LocalFiles([folder]).fingerprint()
    assert LocalFiles([folder]).fingerprint() == before
    (folder / "a.txt").write_text("first\r\nlime\n")
    assert LocalFiles([folder]).fingerprint() != before


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"abc\xffdef", "byte 3: not UTF-8: byte 0xff"),
        (b"\xc3", "byte 0: not UTF-8: byte 0xc3"),
        ("é".encode("latin-1") * 2, "byte 0: not UTF-8"),
        (b"\xed\xa0\x80", "byte 0: not UTF-8"),
        (b"ab\0cd", "byte 2: binary: a NUL byte"),
        (b"\0\xff", "byte 0: binary"),
        (b"\xff\0", "byte 0: not UTF-8"),
        (b"\xff\xfea\0b\0", "byte 0: a UTF-16 byte order mark; give the encoding 'utf-16'"),
        (b"x" * (PIECE_BYTES - 1) + b"\xc3\xa9\xc3x", f"byte {PIECE_BYTES + 1}: not UTF-8"),
        (b"x" * (PIECE_BYTES - 1) + b"\xc3", f"byte {PIECE_BYTES - 1}: not UTF-8"),
        (b"x" * 3 * PIECE_BYTES + b"\0", f"byte {3 * PIECE_BYTES}: binary"),
    ],
)
def test_bad_text_is_placed_and_passed_over(tmp_path: Path, raw: bytes, reason: str) -> None:
    (tmp_path / "a.txt").write_bytes(raw)
    (tmp_path / "b.txt").write_text("good")
    bad, good = texts_of(LocalFiles([tmp_path]))
    assert f"{tmp_path / 'a.txt'}, {reason}" in bad
    assert good == "good"


def test_other_encodings_become_utf8(tmp_path: Path) -> None:
    text = "naïve café\n" * 200_000
    for encoding in ("utf-16", "latin-1", "utf-8-sig", "utf-8"):
        (tmp_path / "a.txt").write_text(text, encoding=encoding, newline="")
        given = "utf-8" if encoding == "utf-8-sig" else encoding
        assert texts_of(LocalFiles([tmp_path / "a.txt"], encoding=given)) == [text]
    (tmp_path / "a.txt").write_bytes("naïve".encode("utf-16")[:-1])
    assert "not UTF-16" in texts_of(LocalFiles([tmp_path], encoding="utf-16"))[0]


def test_a_file_that_changes_while_it_is_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"word " * PIECE_BYTES)
    document = next(iter(LocalFiles([path]).documents()))
    assert isinstance(document, Document)
    assert document.text is None
    path.write_bytes(b"ward " * PIECE_BYTES)
    with pytest.raises(SourceError, match=r"a\.txt: changed while it was being read"):
        list(document.pieces())


def test_lines_and_sections(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n\nthree\r\nfour\n\n\nfive", newline="")
    lines = LocalFiles([path], unit="line")
    assert texts_of(lines) == ["one", "two", "three", "four", "five"]
    assert_goes_on_from_every_cursor(lines)
    sections = LocalFiles([path], unit="section", section_bytes=1)
    assert texts_of(sections) == ["one\ntwo\n\n", "three\nfour\n\n", "five\n"]
    assert texts_of(LocalFiles([path], unit="section", section_bytes=12)) == [
        "one\ntwo\n\nthree\nfour\n\n",
        "five\n",
    ]
    path.write_bytes(b"\n".join(b"%d\n" % n for n in range(50)))
    assert_goes_on_from_every_cursor(LocalFiles([path], unit="section", section_bytes=8))


def test_bad_lines_and_sections_are_placed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n\ntwo\nth\xffree\n\n" + b"x" * 90 + b"\n\nfour\n")
    monkeypatch.setattr(text_files, "read_lines", _short(text_files.read_lines))
    assert texts_of(LocalFiles([path], unit="line")) == [
        "one",
        "two",
        f"{path}, line 4, byte 11: not UTF-8: byte 0xff, invalid start byte",
        f"{path}, line 6, byte 17: longer than {text_files.MAX_LINE_BYTES} bytes",
        "four",
    ]
    assert texts_of(LocalFiles([path], unit="section", section_bytes=1)) == [
        "one\n\n",
        f"{path}, line 4, byte 11: not UTF-8: byte 0xff, invalid start byte",
        f"{path}, line 6, byte 17: longer than {text_files.MAX_LINE_BYTES} bytes",
        "four\n",
    ]


def _short(real):  # type: ignore[no-untyped-def]
    return lambda stream, start: real(stream, start, 40)


def test_a_broken_line_40_000_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    line = json.dumps({"text": "something"}) + "\n"
    path.write_text(line * 39_999 + '{"text": "some\n' + line)
    items = list(LocalFiles([path]).documents())
    assert len(items) == 40_001
    place = 39_999 * len(line) + len('{"text": ')
    assert str(items[39_999]).startswith(f"{path}, line 40000, byte {place}: broken JSON: Unterm")
    assert isinstance(items[40_000], Document)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"body": "a"}', "byte 16: no field 'text'"),
        (b'{"text": null}', "no field 'text'"),
        (b'{"text": 3}', "the field 'text' must be text; it is int"),
        (b'["text"]', "the line must be an object; it is list"),
        (b'{"text": "\\ud800"}', "a lone surrogate at character 0"),
        (b'{"text": "\xff"}', "byte 26: not UTF-8: byte 0xff"),
        (b'{"text": "\0"}', "byte 26: binary"),
        (b'{"text": ' + b"[" * 200_000, "broken JSON"),
        (b'{"text": ' + b"1" * 10_000 + b"}", "broken JSON"),
    ],
)
def test_a_bad_record_is_placed(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n' + line + b'\n{"text": "two"}\n')
    first, bad, last = texts_of(LocalFiles([path]))
    assert (first, last) == ("one", "two")
    assert bad.startswith(f"{path}, line 2, byte ")
    assert reason in bad


def test_another_field_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "one"}')
    assert texts_of(LocalFiles([tmp_path], field="body")) == ["one"]


def test_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts: list[str | None] = [f"row {n} é" for n in range(1000)]
    texts[700] = None
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"body": texts, "n": range(1000)}), path, row_group_size=300)
    source = LocalFiles([path], field="body")
    items = list(source.documents())
    assert str(items[700]) == f"{path}, line 701: no field 'body'"
    del texts[700]
    assert [
        item.text.decode() for item in items if isinstance(item, Document) and item.text
    ] == texts
    for at in (0, 299, 300, 555, 998, 999):
        rest = list(source.documents(items[at].after))
        assert [item.after for item in rest] == [item.after for item in items[at + 1 :]]
    assert "no column 'text'; the columns are body, n" in texts_of(LocalFiles([path]))[0]
    path.write_bytes(path.read_bytes()[:-20])
    assert "a.parquet: no readable Parquet" in texts_of(LocalFiles([path], field="body"))[0]


def test_hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    library = pytest.importorskip("datasets")
    texts = [f"row {n} é" for n in range(6)]
    library.Dataset.from_dict({"text": texts}).save_to_disk(str(tmp_path / "saved"))
    saved = HuggingFaceDataset(str(tmp_path / "saved"))
    assert texts_of(saved) == texts
    assert_goes_on_from_every_cursor(saved)
    assert saved.describe()["name"] == "saved"
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"body": text}) for text in texts))
    streamed = HuggingFaceDataset("json", data_files=str(tmp_path / "a.jsonl"), field="body")
    assert texts_of(streamed) == texts
    assert_goes_on_from_every_cursor(streamed)
    with pytest.raises(SourceError, match="dataset no/such-thing: cannot be opened"):
        HuggingFaceDataset("no/such-thing")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "a.parquet").touch()
    with pytest.raises(SourceError, match="pip install pyarrow"):
        texts_of(LocalFiles([tmp_path]))
    with pytest.raises(SourceError, match="pip install datasets"):
        HuggingFaceDataset("anything")


def test_texts_go_on_and_report_what_is_no_text() -> None:
    source = Texts("t", lambda: ["a", "b", "\ud800", "c", "d"])
    items = list(source.documents())
    assert isinstance(items[2], Problem)
    assert str(items[2]).startswith("t, line 3: the field 'text' has a lone surrogate")
    assert_goes_on_from_every_cursor(source)


def test_the_embedded_corpus_is_the_library_in_a_fixed_order() -> None:
    corpus = EmbeddedCorpus(size=1_000_000)
    items = documents_of(corpus)
    places = [item.place for item in items]
    assert places == sorted(places)
    assert len({place[0] for place in places}) > 10, "from all over the alphabet"
    total = corpus.total_bytes()
    assert total is not None
    assert 950_000 < total <= 1_000_000
    assert sum(item.size for item in items) <= total * 1.01
    assert not any("site-packages" in place for place in places)
    again = EmbeddedCorpus(size=1_000_000)
    assert [item.digest for item in documents_of(again)] == [item.digest for item in items]
    # How many files make the size depends on the Python that runs this.
    middle = len(items) // 2
    assert [
        item.place for item in corpus.documents(items[middle].after) if isinstance(item, Document)
    ] == places[middle + 1 :]
    assert "Python Software Foundation License" in str(corpus.describe()["licence"])
    assert len(list(corpus.texts())) == sum(item.size > 0 for item in items)
    assert EmbeddedCorpus().available_bytes == EmbeddedCorpus().total_bytes() > 5_000_000


def test_the_embedded_corpus_reads_declared_encodings_and_leaves_out_what_is_broken(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.py").write_bytes("# coding: latin-1\nx = 'é'\n".encode("latin-1"))
    (tmp_path / "b.py").write_bytes(b"x = '\xff'\n")
    (tmp_path / "c.py").write_bytes(b"# coding: none-such\n")
    (tmp_path / "d.txt").write_bytes(b"a\0b")
    (tmp_path / "e.rst").write_text("Title")
    (tmp_path / "f.json").write_text("{}")
    corpus = EmbeddedCorpus(folder=tmp_path)
    assert texts_of(corpus) == ["# coding: latin-1\nx = 'é'\n", "Title"]
    with pytest.raises(ValueError, match="no file is so small"):
        EmbeddedCorpus(size=1, folder=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="empty: this Python has no library source"):
        EmbeddedCorpus(folder=tmp_path / "empty")
