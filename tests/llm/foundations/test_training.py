import numpy as np
import pytest

from firsthand.llm.foundations import training
from firsthand.llm.foundations.layers import MLP
from firsthand.llm.foundations.losses import cross_entropy
from firsthand.llm.foundations.optimizers import SGD, Adam
from firsthand.llm.foundations.tensor_autograd import Tensor
from firsthand.llm.foundations.training import accuracy, train_classifier, training_step


def test_the_digits_are_learnt(capsys: pytest.CaptureFixture[str]) -> None:
    training.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [int(row[0]) for row in rows] == list(range(1, len(rows) + 1))
    assert float(rows[-1][1]) < 0.05 < 0.5 < float(rows[0][1])
    assert float(rows[-1][2].rstrip("%")) >= 97.0


def test_a_step_reports_the_loss_before_it_and_follows_the_gradient() -> None:
    generator = np.random.default_rng(0)
    model = MLP([3, 2], generator)
    images, labels = generator.normal(size=(5, 3)), np.array([0, 1, 1, 0, 1])
    before = cross_entropy(model(images).data, labels)
    weight = model.layers[0].weight.data
    # A stale gradient must not leak into the step.
    model.layers[0].weight.grad = np.full((3, 2), 1e6)
    loss = training_step(model, images, labels, SGD(model.parameters(), 0.1))
    assert loss == pytest.approx(before, rel=1e-12)
    step = (weight - model.layers[0].weight.data) / 0.1
    np.testing.assert_allclose(step, model.layers[0].weight.grad, rtol=1e-9)
    assert cross_entropy(model(images).data, labels) < before


def test_the_loss_of_an_epoch_counts_every_image_once() -> None:
    generator = np.random.default_rng(1)
    model = MLP([3, 4, 2], generator)
    images, labels = generator.normal(size=(7, 3)), generator.integers(2, size=7)
    seen: list[tuple[int, float]] = []
    history = train_classifier(
        model,
        images,
        labels,
        epochs=2,
        batch_size=3,
        optimizer=SGD(model.parameters(), 0.0),
        generator=generator,
        on_epoch=lambda epoch, loss: seen.append((epoch, loss)),
    )
    # Without steps every epoch's loss is the loss of the whole set, a short batch or not.
    expected = cross_entropy(model(images).data, labels)
    assert history == pytest.approx([expected, expected], rel=1e-12)
    assert seen == [(1, history[0]), (2, history[1])]


def test_training_is_reproducible() -> None:
    def run() -> list[float]:
        generator = np.random.default_rng(2)
        model = MLP([2, 5, 2], generator, "tanh")
        images = generator.normal(size=(20, 2))
        labels = (images[:, 0] * images[:, 1] > 0).astype(np.int64)
        optimizer = Adam(model.parameters(), 0.05)
        return train_classifier(
            model, images, labels, epochs=5, batch_size=4, optimizer=optimizer, generator=generator
        )

    first = run()
    assert first == run()
    assert first[-1] < first[0]


def test_accuracy_by_hand() -> None:
    logits = np.array([[0.0, 1.0], [2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    share = accuracy(lambda images: Tensor(logits), np.zeros((4, 1)), np.array([1, 0, 0, 1]))
    assert share == 0.5


def test_bad_arguments_are_named() -> None:
    model = MLP([1, 2], np.random.default_rng(0))
    with pytest.raises(ValueError, match="0 images"):
        accuracy(model, np.zeros((0, 1)), np.zeros(0, dtype=int))
    with pytest.raises(ValueError, match="3 images and 2 labels"):
        train_classifier(
            model,
            np.zeros((3, 1)),
            np.zeros(2, dtype=int),
            epochs=1,
            batch_size=1,
            optimizer=SGD(model.parameters(), 0.1),
            generator=np.random.default_rng(0),
        )
