import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firsthand.llm.data.loading import (
    IGNORED,
    Loader,
    LoaderState,
    TokenStream,
    document_bounds,
    document_ids,
    document_mask,
    open_split,
)
from firsthand.llm.data.problems import DataError, ManifestError, ShardError

END = 256


def stream_of(*lengths: int) -> TokenStream:
    """Tokens 0, 1, 2, ... in parts: every token tells its own place."""
    total = np.arange(sum(lengths), dtype=np.uint32)
    return TokenStream(np.split(total, np.cumsum(lengths)[:-1]), END)


def seen_targets(loaders: list[Loader], steps: int) -> Counter[int]:
    seen: Counter[int] = Counter()
    for _ in range(steps):
        for loader in loaders:
            batch = loader.next_batch()
            real = batch.targets != IGNORED
            assert np.array_equal(batch.inputs[real] + 1, batch.targets[real])
            assert batch.real_tokens == np.count_nonzero(real)
            seen.update(batch.targets[real].tolist())
    return seen


@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=4),
    st.integers(1, 20),
    st.integers(1, 5),
    st.integers(1, 4),
    st.booleans(),
)
def test_every_token_comes_once_an_epoch(
    lengths: list[int], length: int, rows: int, ranks: int, shuffle: bool
) -> None:
    stream = stream_of(*lengths, 1)
    loaders = [
        Loader(
            stream,
            sequence_length=length,
            batch_size=rows,
            rank=rank,
            ranks=ranks,
            shuffle=shuffle,
        )
        for rank in range(ranks)
    ]
    once = Counter(range(1, len(stream)))
    for epoch in range(2):
        assert {loader.state().epoch for loader in loaders} == {epoch}
        assert seen_targets(loaders, loaders[0].steps_per_epoch) == once


@given(st.integers(0, 40), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4))
def test_another_number_of_ranks_goes_on_in_the_middle(
    steps: int, ranks: int, rows: int, later_ranks: int
) -> None:
    stream = stream_of(101, 57)

    def loaders(ranks: int, rows: int, state: LoaderState | None) -> list[Loader]:
        return [
            Loader(
                stream,
                sequence_length=8,
                batch_size=rows,
                seed=3,
                rank=rank,
                ranks=ranks,
                state=state,
            )
            for rank in range(ranks)
        ]

    first = loaders(ranks, rows, None)
    steps = steps % first[0].steps_per_epoch
    seen = seen_targets(first, steps)
    state = first[0].state()
    later = loaders(later_ranks, rows + 1, LoaderState.from_json(state.to_json()))
    while later[0].state().epoch == 0:
        seen += seen_targets(later, 1)
    assert seen == Counter(range(1, len(stream)))


def test_resume_is_exact() -> None:
    stream = stream_of(9000, 3, 4000)
    settings = {"sequence_length": 16, "batch_size": 4, "seed": 11}
    reference = Loader(stream, **settings)
    batches = []
    states = []
    for _ in range(2 * reference.steps_per_epoch):
        states.append(reference.state())
        batches.append(reference.next_batch())
    for step in (0, 1, 57, reference.steps_per_epoch - 1, reference.steps_per_epoch):
        resumed = Loader(stream, **settings, state=states[step])
        for expected in batches[step : step + 5]:
            batch = resumed.next_batch()
            assert np.array_equal(batch.inputs, expected.inputs)
            assert np.array_equal(batch.targets, expected.targets)


def test_ranks_share_the_batch_of_one() -> None:
    stream = stream_of(5000)
    one = Loader(stream, sequence_length=16, batch_size=6, seed=1)
    three = [
        Loader(stream, sequence_length=16, batch_size=2, seed=1, rank=rank, ranks=3)
        for rank in range(3)
    ]
    for _ in range(20):
        joined = np.concatenate([loader.next_batch().inputs for loader in three])
        assert np.array_equal(one.next_batch().inputs, joined)


def test_epochs_and_seeds_differ_in_order() -> None:
    stream = stream_of(5000)
    loader = Loader(stream, sequence_length=10, batch_size=500)
    orders = [loader.next_batch().inputs[:, 0].tolist() for _ in range(3)]
    orders.append(
        Loader(stream, sequence_length=10, batch_size=500, seed=1)
        .next_batch()
        .inputs[:, 0]
        .tolist()
    )
    assert len({tuple(order) for order in orders}) == 4
    plain = Loader(stream, sequence_length=10, batch_size=500, shuffle=False).next_batch()
    assert plain.inputs[:, 0].tolist() == list(range(0, 5000, 10))


def test_the_order_is_drawn_in_blocks_without_a_seam() -> None:
    stream = stream_of(30_000)
    loader = Loader(stream, sequence_length=1, batch_size=5000)
    first = [batch.inputs[batch.targets[:, 0] != IGNORED, 0] for batch in loader.epoch()]
    assert sorted(np.concatenate(first).tolist()) == list(range(29_999))
    assert loader.state().epoch == 1


def test_the_last_batch_is_filled_with_nothing_to_learn() -> None:
    loader = Loader(stream_of(12), sequence_length=4, batch_size=2, shuffle=False)
    batches = list(loader.epoch())
    assert [batch.real_tokens for batch in batches] == [8, 3]
    assert batches[1].real_token_fraction == 3 / 8
    assert batches[1].inputs.tolist() == [[8, 9, 10, END], [END] * 4]
    assert batches[1].targets.tolist() == [[9, 10, 11, IGNORED], [IGNORED] * 4]


def test_documents_are_numbered_and_masked() -> None:
    tokens = np.array([1, 2, END, 3, 4, 5, END, 6, 7], np.uint16)
    loader = Loader(
        TokenStream([tokens], END), sequence_length=4, batch_size=2, shuffle=False, documents=True
    )
    batch = loader.next_batch()
    assert batch.documents is not None
    assert batch.documents.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]
    mask = document_mask(batch.documents)
    assert mask[0].tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [False, False, True, False],
        [False, False, True, True],
    ]
    bounds, longest = document_bounds(batch.documents)
    assert bounds.tolist() == [0, 2, 4, 6, 8]
    assert longest == 2


@given(st.lists(st.lists(st.sampled_from([1, 2, END]), min_size=7, max_size=7), min_size=1))
def test_mask_and_bounds_say_the_same(rows: list[list[int]]) -> None:
    documents = document_ids(np.array(rows), END)
    bounds, longest = document_bounds(documents)
    expected = np.zeros((documents.size, documents.size), bool)
    for start, stop in itertools.pairwise(bounds.tolist()):
        expected[start:stop, start:stop] = np.tril(np.ones((stop - start, stop - start), bool))
        assert stop - start <= longest
    mask = document_mask(documents)
    for row in range(len(rows)):
        block = slice(7 * row, 7 * row + 7)
        assert np.array_equal(mask[row], expected[block, block])
    assert expected.sum() == mask.sum()
    assert mask.any(axis=2).all(), "every query has a key"


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.data())
def test_a_stream_reads_across_its_parts(lengths: list[int], data: st.DataObject) -> None:
    stream = stream_of(*lengths, 1)
    start = data.draw(st.integers(0, len(stream)))
    count = data.draw(st.integers(0, len(stream) - start))
    out = np.empty(count, np.int64)
    stream.read(start, out)
    assert out.tolist() == list(range(start, start + count))
    with pytest.raises(IndexError, match=f"of {len(stream)}"):
        stream.read(start, np.empty(len(stream) - start + 1, np.int64))


def test_what_makes_no_sense_is_refused() -> None:
    stream = stream_of(100)
    with pytest.raises(ValueError, match="make no batch"):
        Loader(stream, sequence_length=0, batch_size=1)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        Loader(stream, sequence_length=4, batch_size=1, rank=2, ranks=2)
    with pytest.raises(ValueError, match="nothing to predict"):
        Loader(stream_of(1), sequence_length=4, batch_size=1)
    good = Loader(stream, sequence_length=4, batch_size=1, seed=5).state()
    for change in ({"tokens": 99}, {"sequence_length": 5}, {"seed": 6}, {"position": 25}):
        state = LoaderState.from_json({**good.to_json(), **change})
        with pytest.raises(DataError, match=f"{next(iter(change))} "):
            Loader(stream, sequence_length=4, batch_size=1, seed=5, state=state)
    with pytest.raises(DataError, match="integers epoch, position"):
        LoaderState.from_json({"epoch": 1})


def test_a_prepared_split_is_opened(prepared, words: list[str], tokenizer) -> None:  # type: ignore[no-untyped-def]
    folder, manifest = prepared(words, validation_share=0.3, shard_tokens=100)
    assert len(manifest.splits["train"].shards) > 5
    texts = []
    for split in ("train", "validation"):
        stream = open_split(folder, split, tokenizer_hash=tokenizer.hash)
        ids = np.empty(len(stream), np.uint32)
        stream.read(0, ids)
        assert ids[-1] == END
        texts += [
            tokenizer.decode(part.tolist()) for part in np.split(ids, np.flatnonzero(ids == END))
        ]
    assert sorted(filter(None, texts)) == sorted(words)


def test_a_damaged_or_foreign_folder_is_not_opened(prepared, words: list[str]) -> None:  # type: ignore[no-untyped-def]
    folder, manifest = prepared(words, shard_tokens=1000)
    with pytest.raises(ManifestError, match=r"manifest\.json: prepared with another tokenizer"):
        open_split(folder, "train", tokenizer_hash="0" * 64)
    names = [entry.file for entry in manifest.splits["train"].shards]
    first, second = folder / names[0], folder / names[1]
    kept = first.read_bytes()
    first.write_bytes(kept[:-1])
    with pytest.raises(ShardError, match=r"00000\.bin: cut short"):
        open_split(folder, "train", verify=False)
    first.write_bytes(second.read_bytes())
    with pytest.raises(DataError, match=r"00000\.bin: "):
        open_split(folder, "train")
    first.unlink()
    with pytest.raises(ShardError, match=r"00000\.bin: cannot be read"):
        open_split(folder, "train")
    first.write_bytes(kept)
    open_split(folder, "train")
    (folder / "manifest.json").unlink()
    with pytest.raises(ManifestError, match="never prepared, or not to the end"):
        open_split(folder, "train")


def test_a_foreign_shard_among_the_others_is_named(prepared, words, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder, _ = prepared(words, shard_tokens=10_000)
    other, _ = prepared([word.swapcase() for word in words], shard_tokens=10_000)
    one, two = ((place / "manifest.json").read_text() for place in (folder, other))
    assert one != two
    shard = "train-00000.bin"
    (other / shard).rename(folder / shard)
    with pytest.raises(DataError, match=shard):
        open_split(folder, "train")
