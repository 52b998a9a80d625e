"""What an engine or the texts in it can meet."""


class InferenceError(ValueError):
    """A model that an engine cannot run, or a call that it cannot take; the message says why."""
