"""What stops a run, always with what to do about it."""

from __future__ import annotations


class TrainingError(Exception):
    """A run that cannot start, go on or be read; the message names the file, layer or step."""
