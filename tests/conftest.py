"""Hypothesis without a deadline: how long an example takes depends on the machine's load."""

from hypothesis import settings

settings.register_profile("firsthand", deadline=None, derandomize=True)
settings.load_profile("firsthand")
