"""What can be wrong with a question about memory traffic."""


class TrafficError(ValueError):
    """A cache, a shape or a tile of which no traffic can be computed."""
