import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firsthand.llm.foundations.digits import load_digits, minibatches, split


def test_the_data_are_those_of_scikit_learn() -> None:
    from sklearn import datasets

    images, labels = load_digits()
    expected = datasets.load_digits()
    np.testing.assert_array_equal(images, expected.data / 16.0)
    np.testing.assert_array_equal(labels, expected.target)
    assert images.shape == (1797, 64)
    assert images.dtype == np.float64
    assert labels.dtype == np.int64
    assert (images.min(), images.max()) == (0.0, 1.0)


def test_scikit_learn_is_not_imported() -> None:
    program = (
        "import sys; from firsthand.llm.foundations.digits import load_digits; load_digits(); "
        "sys.exit('sklearn' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_missing_scikit_learn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="scikit-learn"):
        load_digits()


@given(st.integers(2, 60), st.floats(0.05, 0.95), st.integers(0, 9))
def test_a_split_keeps_every_pair_once(count: int, share: float, seed: int) -> None:
    images, labels = np.arange(3.0 * count).reshape(count, 3), np.arange(count)
    if not 0 < round(count * share) < count:
        with pytest.raises(ValueError, match="side empty"):
            split(images, labels, share, seed)
        return
    train_images, train_labels, test_images, test_labels = split(images, labels, share, seed)
    assert len(test_labels) == round(count * share)
    assert sorted([*train_labels, *test_labels]) == list(range(count))
    np.testing.assert_array_equal(train_images, images[train_labels])
    np.testing.assert_array_equal(test_images, images[test_labels])
    again = split(images, labels, share, seed)
    np.testing.assert_array_equal(again[3], test_labels)


def test_the_seed_decides_the_split() -> None:
    images, labels = np.zeros((50, 1)), np.arange(50)
    assert split(images, labels, seed=0)[3].tolist() != split(images, labels, seed=1)[3].tolist()


@given(st.integers(0, 50), st.integers(1, 12), st.integers(0, 9))
def test_an_epoch_visits_each_index_once(count: int, batch_size: int, seed: int) -> None:
    batches = list(minibatches(count, batch_size, np.random.default_rng(seed)))
    assert sorted(np.concatenate([np.zeros(0, dtype=int), *batches])) == list(range(count))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert all(0 < len(batch) <= batch_size for batch in batches)


def test_epochs_differ_in_order() -> None:
    generator = np.random.default_rng(0)
    first, second = (np.concatenate(list(minibatches(40, 7, generator))) for _ in range(2))
    assert first.tolist() != second.tolist()
    assert first.tolist() != list(range(40))


def test_bad_arguments_are_named() -> None:
    images, labels = np.zeros((3, 1)), np.arange(3)
    with pytest.raises(ValueError, match="3 images but 2 labels"):
        split(images, labels[:2])
    with pytest.raises(ValueError, match=r"1\.0"):
        split(images, labels, 1.0)
    with pytest.raises(ValueError, match="side empty"):
        split(images, labels, 0.1)
    with pytest.raises(ValueError, match="batches of 0"):
        next(minibatches(3, 0, np.random.default_rng(0)))
