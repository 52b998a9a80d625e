"""The 256 byte tokens: their order, and the printable character that stands for each in files.

A vocabulary file is text, and bytes such as 0x00 or 0x20 are no good in text. GPT-2 gave each byte
a printable character: itself where it is one, the next free one from U+0100 on where it is not.
The same table fixes the order of the ids: printable bytes first.
Source: Radford et al. 2019, the released `encoder.py`, `bytes_to_unicode`.
"""

from collections.abc import Iterable

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))

BYTE_ORDER: tuple[int, ...] = (*_PRINTABLE, *(b for b in range(256) if b not in _PRINTABLE))
"""BYTE_ORDER[i] is the byte of the token with id i (0 <= i < 256)."""

BYTE_IDS: tuple[int, ...] = tuple(sorted(range(256), key=BYTE_ORDER.__getitem__))
"""BYTE_IDS[b] is the id of byte b: the inverse of BYTE_ORDER."""

_CHARACTERS = {
    byte: chr(byte) if i < len(_PRINTABLE) else chr(0x100 + i - len(_PRINTABLE))
    for i, byte in enumerate(BYTE_ORDER)
}
_BYTES = {character: byte for byte, character in _CHARACTERS.items()}


def to_printable(token: bytes) -> str:
    """One printable character for each byte: `b" the"` becomes `"Ġthe"`."""
    return "".join(map(_CHARACTERS.__getitem__, token))


def from_printable(text: Iterable[str]) -> bytes:
    """The inverse of `to_printable`.

    Raises:
        KeyError: a character that stands for no byte.
    """
    return bytes(map(_BYTES.__getitem__, text))
