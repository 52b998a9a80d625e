"""The one exception of this folder."""


class TokenizerError(ValueError):
    """Text, ids, settings or a file that the tokenizer cannot take; the message names the place."""
