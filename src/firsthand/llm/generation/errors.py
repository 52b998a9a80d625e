"""What can go wrong while text is generated."""


class GenerationError(ValueError):
    """A prompt, a model or a request that no text can be generated from."""
