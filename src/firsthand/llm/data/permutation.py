"""A random order of n things without a list of n numbers: a Feistel network with cycle walking."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

ROUNDS = 4
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
MAX_SIZE = 1 << 62


def _mixed(values: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """Each value with the key to 64 bits without a pattern: splitmix64's finalizer.

    Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", figure 16.
    """
    mixed = values + key
    mixed ^= mixed >> np.uint64(30)
    mixed *= _MIX_1
    mixed ^= mixed >> np.uint64(27)
    mixed *= _MIX_2
    mixed ^= mixed >> np.uint64(31)
    return mixed


class Permutation:
    """A bijection of [0, size) drawn by a seed; any part of it can be asked for at any time.

    The index is cut into a high and a low part of bits, and each round changes one part by a hash
    of the other, which can be undone whatever the hash is: Luby & Rackoff 1988, "How to construct
    pseudorandom permutations from pseudorandom functions". The network permutes a power of two
    below twice the size (64 at least); what falls outside is sent through again until it falls
    inside ("cycle walking", Black & Rogaway 2002, "Ciphers with arbitrary finite domains",
    section 3).
    """

    def __init__(self, size: int, *seeds: int) -> None:
        """Draw it.

        Args:
            size: from 1 to 2^62.
            seeds: integers; every list of them draws another permutation.
        Raises:
            ValueError: the size is out of range.
        """
        if not 1 <= size <= MAX_SIZE:
            raise ValueError(f"a permutation of {size} things; 1 to {MAX_SIZE} are possible")
        self.size = size
        # On fewer than six bits the network is measurably uneven: too few functions of a half.
        bits = max(6, (size - 1).bit_length())
        self._low_bits = np.uint64(bits // 2)
        self._low_mask = np.uint64((1 << (bits // 2)) - 1)
        self._high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
        text = ",".join(str(seed) for seed in seeds).encode("ascii")
        drawn = hashlib.blake2b(text, digest_size=16 * ROUNDS).digest()
        self._keys = np.frombuffer(drawn, "<u8").astype(np.uint64)

    def _through(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        low = values & self._low_mask
        high = values >> self._low_bits
        for key in self._keys.reshape(ROUNDS, 2):
            high ^= _mixed(low, key[0]) & self._high_mask
            low ^= _mixed(high, key[1]) & self._low_mask
        return (high << self._low_bits) | low

    def __call__(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where each index goes: the same shape, values in [0, size).

        Raises:
            IndexError: an index outside [0, size).
        """
        if indices.size and not (int(indices.min()) >= 0 and int(indices.max()) < self.size):
            raise IndexError(f"an index outside [0, {self.size})")
        values = self._through(indices.astype(np.uint64).ravel())
        outside = np.flatnonzero(values >= self.size)
        while outside.size:
            values[outside] = self._through(values[outside])
            outside = outside[values[outside] >= self.size]
        return values.astype(np.int64).reshape(indices.shape)
