import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from firsthand.llm.model.positions import (
    alibi_slopes,
    half_order,
    interleaved_order,
    rotary_angles,
    rotate_half,
    rotate_interleaved,
    sinusoidal_positions,
)
from firsthand.llm.model.visibility import document_bias, visibility_bias
from firsthand.llm.parts import FAST

torch.set_num_threads(1)
ROTATIONS = [rotate_half, rotate_interleaved, FAST.rotate_half, FAST.rotate_interleaved]


def _x(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_angles_by_hand() -> None:
    cos, sin = rotary_angles(torch.tensor([0, 3]), 4, base=100.0)
    expected = torch.tensor([[0.0, 0.0], [3.0, 0.3]], dtype=torch.float64)
    torch.testing.assert_close(cos, expected.cos())
    torch.testing.assert_close(sin, expected.sin())


def test_which_features_turn_together() -> None:
    cos, sin = (torch.full((1, 2), value) for value in (0.0, 1.0))
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert rotate_half(x, cos, sin).tolist() == [[-3.0, -4.0, 1.0, 2.0]]
    assert rotate_interleaved(x, cos, sin).tolist() == [[-2.0, 1.0, -4.0, 3.0]]


@pytest.mark.parametrize("rotate", ROTATIONS)
def test_scores_depend_on_the_distance_alone(rotate: object) -> None:
    assert callable(rotate)
    q, k = _x(1, 1, 8), _x(2, 1, 8)[:1]

    def score(query: int, key: int) -> float:
        at = lambda p: rotary_angles(torch.tensor([p]), 8)  # noqa: E731
        return float((rotate(q, *at(query)) * rotate(k, *at(key))).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-12)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-3)


@given(st.integers(1, 8).map(lambda n: 2 * n), st.integers(1, 5))
def test_the_permutation_between_the_pairings(width: int, seq: int) -> None:
    x, angles = _x(2, seq, width), rotary_angles(torch.arange(seq), width)
    order = interleaved_order(width)
    turned = rotate_interleaved(x[..., order], *angles)
    torch.testing.assert_close(turned, rotate_half(x, *angles)[..., order])
    torch.testing.assert_close(x[..., order][..., half_order(width)], x)


def test_the_pairings_differ() -> None:
    x, angles = _x(1, 3, 8), rotary_angles(torch.arange(3), 8)
    assert not torch.allclose(rotate_half(x, *angles), rotate_interleaved(x, *angles))


def test_sinusoids_by_hand() -> None:
    waves = sinusoidal_positions(torch.tensor([0, 2]), 4, base=100.0)
    right = [[0, 1, 0, 1], [math.sin(2), math.cos(2), math.sin(0.2), math.cos(0.2)]]
    torch.testing.assert_close(waves, torch.tensor(right, dtype=torch.float64))


def test_slopes_of_a_power_of_two() -> None:
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(1).tolist() == [2.0**-8]


def test_slopes_between_powers_of_two() -> None:
    expected = [*alibi_slopes(4).tolist(), 2**-1.0, 2**-3.0]
    assert alibi_slopes(6).tolist() == pytest.approx(expected)
    assert len(set(alibi_slopes(12).tolist())) == 12


def test_bias_by_hand() -> None:
    inf = math.inf
    slopes = torch.tensor([1.0, 0.5])
    bias = visibility_bias(torch.tensor([1, 2]), torch.tensor([0, 1, 2, -1]), 2, slopes)
    first = [[-1.0, 0.0, -inf, -inf], [-inf, -1.0, 0.0, -inf]]
    second = [[-0.5, 0.0, -inf, -inf], [-inf, -0.5, 0.0, -inf]]
    assert bias.tolist() == [first, second]
    plain = visibility_bias(torch.arange(3), torch.arange(3))
    assert plain.tolist() == [[[0.0, -inf, -inf], [0.0, 0.0, -inf], [0.0, 0.0, 0.0]]]


def test_documents_by_hand() -> None:
    bias = document_bias(torch.tensor([[4, 4, 7]]))
    inf = math.inf
    assert bias.tolist() == [[[[0.0, 0.0, -inf], [0.0, 0.0, -inf], [-inf, -inf, 0.0]]]]
