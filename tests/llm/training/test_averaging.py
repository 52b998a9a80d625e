"""The average of the weights: its sum by hand, the exchange, saved and loaded."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from firsthand.llm.parts import REFERENCE
from firsthand.llm.training.averaging import Average, average_weights, decay_of_half_life
from firsthand.llm.training.errors import TrainingError

torch.set_num_threads(1)


def _walk(model: nn.Linear, average: Average, seeds: range) -> None:
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            model.weight.normal_(generator=generator)
        average.update()


@given(st.floats(0.0, 0.999), st.integers(1, 12))
def test_it_is_the_weighted_mean(decay: float, count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    weights = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    average = torch.full((3,), 77.0, dtype=torch.float64)
    for number, weight in enumerate(weights, 1):
        average_weights([average], [weight], decay, number)
    shares = torch.tensor([decay ** (count - 1 - k) for k in range(count)], dtype=torch.float64)
    torch.testing.assert_close(average, shares @ weights / shares.sum())


def test_half_life() -> None:
    assert decay_of_half_life(10.0) ** 10 == pytest.approx(0.5)


def test_the_model_has_the_average_inside_and_its_weights_afterwards() -> None:
    model = nn.Linear(3, 5)
    average = Average(model, 0.5, REFERENCE)
    with pytest.raises(TrainingError, match="no step"), average.applied():
        pass
    _walk(model, average, range(3))
    own, mean = model.weight.detach().clone(), average.tensors()["weight"].clone()
    assert not torch.equal(own, mean)

    def use(error: bool) -> None:
        with average.applied():
            assert torch.equal(model.weight, mean)
            if error:
                raise KeyError

    use(error=False)
    with pytest.raises(KeyError):
        use(error=True)
    assert torch.equal(model.weight, own)
    assert torch.equal(average.tensors()["weight"], mean)


def test_saved_and_loaded_it_goes_on_bit_for_bit() -> None:
    model = nn.Linear(3, 5)
    average = Average(model, 0.9, REFERENCE)
    _walk(model, average, range(4))
    saved = {name: tensor.clone() for name, tensor in average.tensors().items()}
    assert average.nbytes == 4 * (15 + 5)
    _walk(model, average, range(4, 7))
    again = Average(nn.Linear(3, 5), 0.9, REFERENCE)
    again.load(saved, 4)
    _walk(again_model := nn.Linear(3, 5), other := Average(again_model, 0.9, REFERENCE), range(4))
    other.load(saved, 4)
    _walk(again_model, other, range(4, 7))
    assert torch.equal(other.tensors()["weight"], average.tensors()["weight"])
    assert again.updates == 4
    with pytest.raises(TrainingError, match=r"weight has shape \(2, 5\)"):
        again.load({**saved, "weight": torch.zeros(2, 5)}, 4)
