"""Train an MLP classifier on the digits.

`python -m firsthand.llm.foundations.training` prints a table: epoch, training loss, test
accuracy, seconds.
"""

import time
from collections.abc import Callable

import numpy as np

from firsthand.llm.foundations.arrays import Array, IntArray
from firsthand.llm.foundations.digits import load_digits, minibatches, split
from firsthand.llm.foundations.layers import MLP
from firsthand.llm.foundations.optimizers import Adam, Optimizer
from firsthand.llm.foundations.tensor_autograd import Tensor, no_grad

Classifier = Callable[[Array], Tensor]


def training_step(
    model: Classifier, images: Array, labels: IntArray, optimizer: Optimizer
) -> float:
    """One update of the model's parameters on one batch.

    Args:
        model: maps (batch, features) to logits (batch, classes).
        images: (batch, features).
        labels: (batch,).
        optimizer: over the model's parameters.
    Returns:
        The mean cross-entropy before the update, in nats.
    """
    optimizer.zero_grad()
    loss = model(images).cross_entropy(labels)
    loss.backward()
    optimizer.step()
    return loss.item()


def accuracy(model: Classifier, images: Array, labels: IntArray) -> float:
    """The share of images whose largest logit is that of their label, in [0, 1].

    Raises:
        ValueError: no images, or counts that differ.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise ValueError(f"no accuracy over {len(images)} images and {len(labels)} labels")
    with no_grad():
        logits = model(images).data
    predictions = np.argmax(logits, axis=-1)
    return float(np.mean(predictions == labels))


def train_classifier(
    model: Classifier,
    images: Array,
    labels: IntArray,
    *,
    epochs: int,
    batch_size: int,
    optimizer: Optimizer,
    generator: np.random.Generator,
    on_epoch: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Minimize the cross-entropy over shuffled minibatches.

    Args:
        model: maps (batch, features) to logits (batch, classes).
        images: (n, features).
        labels: (n,) integers.
        epochs: passes over the data.
        batch_size: images per update; the last batch of an epoch may be short.
        optimizer: over the model's parameters.
        generator: orders the images of each epoch.
        on_epoch: called after each epoch with its number, from 1, and its mean loss.
    Returns:
        The mean loss per image of each epoch, in nats.
    Raises:
        ValueError: no images, or counts that differ.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise ValueError(f"cannot train on {len(images)} images and {len(labels)} labels")
    history = []
    for epoch in range(1, epochs + 1):
        total = 0.0
        for batch in minibatches(len(images), batch_size, generator):
            loss = training_step(model, images[batch], labels[batch], optimizer)
            # Weighted by its size, so that a short last batch counts for what it holds.
            total += loss * len(batch)
        history.append(total / len(images))
        if on_epoch is not None:
            on_epoch(epoch, history[-1])
    return history


def main() -> None:
    """Train on the digits and print one line an epoch."""
    train_images, train_labels, test_images, test_labels = split(*load_digits())
    generator = np.random.default_rng(0)
    model = MLP([64, 128, 10], generator)
    count = sum(parameter.size for parameter in model.parameters())
    print(f"{len(train_images)} training images, {len(test_images)} test images, {count} weights")
    print("epoch    loss  test accuracy  seconds")
    start = time.perf_counter()

    def report(epoch: int, loss: float) -> None:
        share = accuracy(model, test_images, test_labels)
        print(f"{epoch:5d}  {loss:6.4f}  {share:13.2%}  {time.perf_counter() - start:7.2f}")

    train_classifier(
        model,
        train_images,
        train_labels,
        epochs=30,
        batch_size=32,
        optimizer=Adam(model.parameters(), learning_rate=1e-3),
        generator=generator,
        on_epoch=report,
    )


if __name__ == "__main__":
    main()
