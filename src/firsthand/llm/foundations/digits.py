"""The 1,797 handwritten digits that scikit-learn ships, read as a file.

Eight by eight pixels with 17 levels. Source: Alpaydin & Kaynak 1998, "Optical recognition of
handwritten digits", UCI Machine Learning Repository (its test part).
"""

import gzip
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from firsthand.llm.foundations.arrays import Array, IntArray


def _digits_file() -> Path:
    # Finding the package runs none of it: importing scikit-learn would take a second or more.
    found = importlib.util.find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError("the digits come with scikit-learn: pip install scikit-learn")
    path = Path(found.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        raise FileNotFoundError(f"this scikit-learn has no file {path}")
    return path


def load_digits() -> tuple[Array, IntArray]:
    """Images and labels.

    Returns:
        Images (1797, 64), float64 in [0, 1], rows of pixels one behind the other; labels
        (1797,), int64 in [0, 10).
    Raises:
        FileNotFoundError: scikit-learn, which ships the file, is not installed.
    """
    with gzip.open(_digits_file(), "rt", encoding="ascii") as lines:
        table = np.loadtxt(lines, delimiter=",")
    images = table[:, :-1] / 16.0
    labels = table[:, -1].astype(np.int64)
    return images, labels


def split(
    images: Array, labels: IntArray, test_share: float = 0.2, seed: int = 0
) -> tuple[Array, IntArray, Array, IntArray]:
    """Shuffle, and set a share aside for the test.

    Args:
        images: (n, ...).
        labels: (n,).
        test_share: above 0 and below 1.
        seed: of the order; the same seed gives the same split.
    Returns:
        Training images, training labels, test images, test labels; all copies.
    Raises:
        ValueError: the counts differ, the share is out of range, or a side would be empty.
    """
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images but {len(labels)} labels")
    if not 0.0 < test_share < 1.0:
        raise ValueError(f"test_share must lie between 0 and 1: {test_share}")
    test_count = round(len(images) * test_share)
    if not 0 < test_count < len(images):
        raise ValueError(f"a share of {test_share} of {len(images)} images leaves a side empty")
    order = np.random.default_rng(seed).permutation(len(images))
    test, training = order[:test_count], order[test_count:]
    return images[training], labels[training], images[test], labels[test]


def minibatches(count: int, batch_size: int, generator: np.random.Generator) -> Iterator[IntArray]:
    """The indices of one epoch in random order, cut into batches.

    Each index in [0, count) comes exactly once; the last batch may be short.

    Raises:
        ValueError: batch_size is below 1 or count is negative (at the first batch).
    """
    if batch_size < 1 or count < 0:
        raise ValueError(f"no batches of {batch_size} from {count} examples")
    order = generator.permutation(count)
    for start in range(0, count, batch_size):
        yield order[start : start + batch_size]
