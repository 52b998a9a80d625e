"""The base of every error that is the learner's to read: one sentence, never a traceback."""

from __future__ import annotations


class FirsthandError(Exception):
    """Something outside the program is not as it must be; the text says what, and what to do."""
