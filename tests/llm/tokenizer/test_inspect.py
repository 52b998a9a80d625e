from itertools import pairwise

import pytest

from firsthand.llm.tokenizer import Tokenizer, TokenizerError, train
from firsthand.llm.tokenizer.inspect import (
    MergeNode,
    bytes_per_token,
    merge_tree,
    token_views,
    vocabulary_trade_off,
)


@pytest.fixture(scope="module")
def tokenizer(library: tuple[str, ...]) -> Tokenizer:
    return train(library, 1500, special_tokens=["<|end|>"])


def test_views_cover_the_text(
    tokenizer: Tokenizer, library: tuple[str, ...], awkward: tuple[str, ...]
) -> None:
    for text in (*awkward, library[0][:3000]):
        views = token_views(tokenizer, text)
        data = text.encode()
        assert [view.identity for view in views] == tokenizer.encode(text)
        assert b"".join(data[view.start : view.end] for view in views) == data
        assert all(a.color != b.color for a, b in pairwise(views))


def test_views_know_pieces_and_special_tokens(tokenizer: Tokenizer) -> None:
    views = token_views(tokenizer, "zqx zqx<|end|>", allowed_special="all")
    pieces = {view.piece: "" for view in views}
    for view in views:
        pieces[view.piece] += view.text
    assert list(pieces.values()) == ["zqx", " zqx", "<|end|>"]
    assert [view.special for view in views] == [False] * (len(views) - 1) + [True]
    assert not any(view.special for view in token_views(tokenizer, "<|end|>"))


def test_bytes_per_token(tokenizer: Tokenizer, library: tuple[str, ...]) -> None:
    assert bytes_per_token(Tokenizer([]), "Grüße") == 1.0
    text = library[0]
    assert bytes_per_token(tokenizer, text) == len(text.encode()) / len(tokenizer.encode(text))
    with pytest.raises(TokenizerError, match="empty"):
        bytes_per_token(tokenizer, "")


def _leaves(node: MergeNode) -> str:
    return "".join(map(_leaves, node.parts)) if node.parts else node.text


def test_a_merge_tree_goes_down_to_the_bytes(tokenizer: Tokenizer) -> None:
    trees = merge_tree(tokenizer, " return")
    assert "".join(tree.text for tree in trees) == " return"
    assert "".join(map(_leaves, trees)) == " return"
    stack = list(trees)
    assert any(node.parts for node in stack)
    while stack:
        node = stack.pop()
        assert (node.rank is None) == (not node.parts)
        if node.rank is not None:
            pair = tokenizer.merges[node.rank]
            assert tuple(part.identity for part in node.parts) == pair
            assert all(part.rank is None or part.rank < node.rank for part in node.parts)
        stack += node.parts


def test_the_trade_off_is_what_training_each_size_gives(
    tokenizer: Tokenizer, library: tuple[str, ...]
) -> None:
    text = library[0]
    rows = vocabulary_trade_off(
        tokenizer, text, [1500, 300, 700], width=96, weight_bytes=2, tied=False
    )
    assert [row.vocabulary_size for row in rows] == [300, 700, 1500]
    for row in rows:
        trained = train(library, row.vocabulary_size, special_tokens=["<|end|>"])
        assert row.tokens == len(trained.encode(text))
        assert row.embedding_bytes == row.vocabulary_size * 96 * 2 * 2
        assert row.bytes_per_token == len(text.encode()) / row.tokens
        assert row.relative_length == row.tokens / rows[-1].tokens
    assert rows[0].tokens > rows[1].tokens > rows[2].tokens


def test_trade_offs_that_cannot_be(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="larger than the 1500 trained"):
        vocabulary_trade_off(tokenizer, "x", [1501], width=8)
    with pytest.raises(TokenizerError, match="at least one"):
        vocabulary_trade_off(tokenizer, "x", [], width=8)
    with pytest.raises(TokenizerError, match="too small"):
        vocabulary_trade_off(tokenizer, "x", [256], width=8)
    with pytest.raises(TokenizerError, match="at least 2 colours"):
        token_views(tokenizer, "x", color_count=1)
