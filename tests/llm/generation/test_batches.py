"""Rows of unequal length in one cache: the same numbers as each row by itself."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from firsthand.llm.generation.batches import Shrinking
from firsthand.llm.generation.decoding import Request, generate, stream
from firsthand.llm.generation.results import Piece
from firsthand.llm.generation.sampling import Sampling
from firsthand.llm.model.cache import KVCache
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST, REFERENCE

Made = Callable[..., Transformer]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gqa": {"n_kv_heads": 2, "rope_pairing": "interleaved", "qk_norm": True},
    "learned": {"positions": "learned", "norm": "layer", "feed_forward": "gelu", "bias": True},
    "sinusoidal": {"positions": "sinusoidal"},
    "alibi": {"positions": "alibi", "n_kv_heads": 2},
    "none": {"positions": "none", "norm_placement": "post"},
    "window": {"window": 5, "n_kv_heads": 2},
    "window-1": {"window": 1},
    "window-alibi": {"window": 7, "positions": "alibi"},
    "window-learned": {"window": 6, "positions": "learned"},
}
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9], [30], [2, 7, 1, 8, 2, 8, 1]]


def _tokens(batch: int, seq: int) -> Tensor:
    return torch.randint(31, (batch, seq), generator=torch.Generator().manual_seed(seq))


@pytest.mark.parametrize("parts", [REFERENCE, FAST], ids=["reference", "fast"])
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("sizes", [[36], [20, *[1] * 16], [3, 9, 1, 23]])
def test_padded_rows_equal_each_row_alone(
    name: str, sizes: list[int], parts: Any, make_model: Made
) -> None:
    model, tokens = make_model(parts=parts, **VARIANTS[name]), _tokens(3, 36)
    starts = torch.tensor([11, 0, 19])
    cache = model.new_cache(3, piece=4)
    with torch.no_grad():
        uncached = model(tokens, starts=starts)
        pieces = torch.split(tokens, sizes, dim=1)
        cached = torch.cat([model(piece, cache=cache, starts=starts) for piece in pieces], dim=1)
        for row, start in enumerate(starts.tolist()):
            alone = model(tokens[row : row + 1, start:])[0]
            torch.testing.assert_close(uncached[row, start:], alone, rtol=0, atol=1e-10)
            torch.testing.assert_close(cached[row, start:], alone, rtol=0, atol=1e-10)


def test_padding_is_seen_by_nobody(make_model: Made) -> None:
    model, tokens = make_model(), _tokens(2, 12)
    starts = torch.tensor([5, 0])
    other = tokens.clone()
    other[0, :5] = 30 - other[0, :5]
    with torch.no_grad():
        before, after = model(tokens, starts=starts), model(other, starts=starts)
    assert torch.equal(before[0, 5:], after[0, 5:])
    assert bool(torch.isfinite(before).all())


@pytest.mark.parametrize("starts", [[0], [0, 0, 0]])
def test_a_start_for_each_row(starts: list[int], make_model: Made) -> None:
    with pytest.raises(ValueError, match="starts for 2 rows"):
        make_model()(_tokens(2, 5), starts=torch.tensor(starts))


def test_each_row_has_the_whole_context(make_model: Made) -> None:
    model = make_model(positions="learned")
    with torch.no_grad():
        model(_tokens(2, 45), starts=torch.tensor([5, 9]))
        with pytest.raises(ValueError, match="41 tokens are longer than the context of 40"):
            model(_tokens(2, 45), starts=torch.tensor([4, 9]))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_gives_the_same_text_in_any_batch(
    name: str, temperature: float, make_model: Made
) -> None:
    """Up to the end of the context, where rows stop one after the other."""
    model = make_model(**VARIANTS[name])
    sampling = Sampling(temperature=temperature, max_new_tokens=60, seed=7, logprobs=True)
    together = generate(model, PROMPTS, sampling)
    assert [len(r.ids) for r in together] == [37, 28, 39, 33]
    assert {r.reason for r in together} == {"length"}
    for row, result in enumerate(together):
        request = Request(prompt=PROMPTS[row], sampling=sampling, stream=row)
        (alone,) = generate(model, [request])
        assert alone.ids == result.ids
        assert alone.logprobs == pytest.approx(result.logprobs, abs=1e-9)


@pytest.mark.parametrize("name", ["plain", "window", "learned"])
def test_logits_of_each_step_are_those_of_the_whole_text(name: str, make_model: Made) -> None:
    model = make_model(**VARIANTS[name])
    for result in generate(model, PROMPTS, Sampling(max_new_tokens=20, logprobs=True)):
        text = torch.tensor([result.prompt + result.ids])
        with torch.no_grad():
            logprobs = torch.log_softmax(model(text)[0], dim=-1)
        first = len(result.prompt) - 1
        expected = [logprobs[first + i, token].item() for i, token in enumerate(result.ids)]
        assert result.logprobs == pytest.approx(expected, abs=1e-9)


class Lasting:
    """`KVCache` without `keep` and `spread`, as a learner may write it."""

    def __init__(self, **sizes: Any) -> None:
        self._cache = KVCache(**sizes)

    def __getattr__(self, name: str) -> Any:
        if name in ("keep", "spread"):
            raise AttributeError(name)
        return getattr(self._cache, name)


@pytest.mark.parametrize("kind", [KVCache, Lasting])
def test_finished_rows_cost_the_others_nothing(kind: Any, make_model: Made) -> None:
    parts = replace(FAST, kv_cache=kind)
    model = make_model(parts=parts, positions="learned")
    assert isinstance(model.new_cache(1), Shrinking) is (kind is KVCache)
    sampling = Sampling(max_new_tokens=20, seed=1, repetition_penalty=1.3)
    ends = (0, 15)
    together = generate(model, PROMPTS * 3, sampling, end_tokens=ends)
    assert len({len(r.ids) for r in together}) > 4
    assert {r.reason for r in together} == {"end", "length"}
    for row, result in enumerate(together):
        request = Request(prompt=result.prompt, sampling=sampling, stream=row)
        (alone,) = generate(model, [request], end_tokens=ends)
        assert alone.ids == result.ids
        assert not set(result.ids[:-1]) & set(ends)
        assert (result.ids[-1] in ends) is (result.reason == "end")


def test_finished_rows_leave_the_work(make_model: Made) -> None:
    """The rows of each pass through the model, and how many are moved in the cache."""
    sizes: list[int] = []
    moved: list[int] = []

    def embed(tokens: Tensor, weight: Tensor) -> Tensor:
        sizes.append(len(tokens))
        return FAST.embed(tokens, weight)

    class Counting(KVCache):
        def keep(self, rows: Any) -> None:
            moved.append(sum(place != row for place, row in enumerate(rows)))
            super().keep(rows)

    model = make_model(parts=replace(FAST, embed=embed, kv_cache=Counting))
    prompts = [[row] * length for row, length in enumerate((39, 37, 36, 39, 38))]
    generate(model, prompts, Sampling(max_new_tokens=9))
    # The context of 40 gives them 1, 3, 4, 1 and 2 tokens: rows 4, 1, 2 go on, then 2, 1, then 2.
    assert sizes == [5, 3, 2, 1]
    assert moved == [1, 1, 0]


@pytest.mark.parametrize("name", [*VARIANTS, "neighbours"])
@pytest.mark.parametrize("kind", [KVCache, Lasting])
def test_samples_of_a_prompt_read_it_once(name: str, kind: Any, make_model: Made) -> None:
    """The rows of the first pass are the different prompts; the texts are those of each alone."""
    sizes: list[int] = []

    def embed(tokens: Tensor, weight: Tensor) -> Tensor:
        sizes.append(len(tokens))
        return FAST.embed(tokens, weight)

    changes = VARIANTS.get(name, {"neighbours": 2})
    model = make_model(parts=replace(FAST, embed=embed, kv_cache=kind), **changes)
    sampling = Sampling(max_new_tokens=30, seed=3, logprobs=True)
    prompts = [PROMPTS[n] for n in (1, 1, 0, 1, 3, 0)]
    together = generate(model, prompts, sampling)
    assert sizes[0] == (3 if kind is KVCache else 6)
    for row, result in enumerate(together):
        request = Request(prompt=prompts[row], sampling=sampling, stream=row)
        (alone,) = generate(model, [request])
        assert alone.ids == result.ids
        assert alone.logprobs == pytest.approx(result.logprobs, abs=1e-9)


def test_rows_that_a_cache_spreads() -> None:
    cache = KVCache(layers=2, batch=3, kv_heads=1, capacity=4, width=1)
    rows = torch.arange(3.0).view(3, 1, 1, 1).expand(-1, -1, 2, -1)
    for layer in range(2):
        cache.append(layer, rows + 10 * layer, -rows - 10 * layer)
    cache.advance(2)
    cache.spread([2, 0, 0, 1, 2])
    new = torch.arange(5.0).view(5, 1, 1, 1)
    for layer in range(2):
        keys, values = cache.append(layer, new, new)
        assert keys[:, 0, 1, 0].tolist() == [row + 10.0 * layer for row in (2, 0, 0, 1, 2)]
        assert values[:, 0, 0, 0].tolist() == [-row - 10.0 * layer for row in (2, 0, 0, 1, 2)]
        assert keys[:, 0, 2, 0].tolist() == [0, 1, 2, 3, 4]


@given(st.data())
def test_rows_that_a_cache_keeps(data: st.DataObject) -> None:
    cache = KVCache(layers=2, batch=5, kv_heads=1, capacity=4, width=1)
    rows = torch.arange(5.0).view(5, 1, 1, 1).expand(-1, -1, 3, -1)
    for layer in range(2):
        cache.append(layer, rows + 10 * layer, -rows - 10 * layer)
    cache.advance(3)
    kept = data.draw(st.permutations(range(5)))[: data.draw(st.integers(1, 5))]
    cache.keep(kept)
    for layer in range(2):
        new = torch.full((len(kept), 1, 1, 1), 99.0)
        keys, values = cache.append(layer, new, new)
        assert keys[:, 0, :3, 0].tolist() == [[row + 10.0 * layer] * 3 for row in kept]
        assert values[:, 0, 0, 0].tolist() == [-row - 10.0 * layer for row in kept]
        assert keys[:, 0, 3, 0].tolist() == [99.0] * len(kept)
    with pytest.raises(ValueError, match="cannot keep 0"):
        cache.keep([])


def test_pieces_are_the_results_in_parts(make_model: Made) -> None:
    model, sampling = make_model(), Sampling(max_new_tokens=12, logprobs=True, top_logprobs=3)
    results = generate(model, PROMPTS, sampling)
    pieces: dict[int, list[Piece]] = {row: [] for row in range(len(PROMPTS))}
    for piece in stream(model, PROMPTS, sampling):
        # The reader's own code runs in the reader's own mode.
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
        pieces[piece.row].append(piece)
    for row, result in enumerate(results):
        of_row = pieces[row]
        assert tuple(p.token for p in of_row) == result.ids
        assert tuple(p.logprob for p in of_row) == result.logprobs
        assert tuple(p.top for p in of_row) == result.top_logprobs
        assert [p.result is None for p in of_row] == [True] * 11 + [False]


def test_the_model_can_be_trained_afterwards(make_model: Made) -> None:
    """What generation leaves behind in the model must not be bound to inference mode."""
    for pairing in ("half", "interleaved"):
        model = make_model(rope_pairing=pairing)
        generate(model, PROMPTS, Sampling(max_new_tokens=3))
        model.loss(_tokens(2, 9), _tokens(2, 9)).total.backward()
        assert all(p.grad is not None for p in model.parameters())


def test_a_token_is_given_before_the_next_is_computed(make_model: Made) -> None:
    passes = 0

    def embed(tokens: Tensor, weight: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        return FAST.embed(tokens, weight)

    model = make_model(parts=replace(FAST, embed=embed))
    pieces = stream(model, PROMPTS[:1], Sampling(max_new_tokens=9))
    assert passes == 0
    for number in range(1, 4):
        next(pieces)
        assert passes == number
    del pieces
    assert passes == 3


def test_a_model_in_half_precision(make_model: Made) -> None:
    """The logits are widened before they are sampled from; the cache is the model's."""
    model = make_model().to(torch.bfloat16)
    assert model.new_cache(1).nbytes * 4 == make_model().new_cache(1).nbytes
    results = generate(model, PROMPTS, Sampling(max_new_tokens=9, logprobs=True, top_logprobs=31))
    for result in results:
        assert len(result.ids) == 9
        for top in result.top_logprobs:
            total = torch.tensor([logprob for _, logprob in top]).exp().sum().item()
            assert total == pytest.approx(1, abs=1e-5)
