"""What a server counts and times, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

# Seconds; from a fast step of a small model to a long queue.
FIRST_TOKEN = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)
BETWEEN_TOKENS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """The counters of one service, apart from those of any other in the process.

    Attributes:
        requests: HTTP requests by path and status.
        texts: finished texts by reason: end, stop, length, cancelled, late or failed.
        prompt_tokens, generated_tokens: read and written.
        first_token: from the request for a text to its first token, the queue included.
        between_tokens: from one token of a text to its next.
        text_seconds: from the request for a text to its end.
    """

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "firsthand_requests", "HTTP requests.", ("path", "status"), registry=registry
        )
        self.texts = Counter("firsthand_texts", "Texts that ended.", ("reason",), registry=registry)
        self.prompt_tokens = Counter(
            "firsthand_prompt_tokens", "Tokens of prompts.", registry=registry
        )
        self.generated_tokens = Counter(
            "firsthand_generated_tokens", "Tokens generated.", registry=registry
        )
        self.first_token = Histogram(
            "firsthand_time_to_first_token_seconds",
            "From the request to the first token.",
            buckets=FIRST_TOKEN,
            registry=registry,
        )
        self.between_tokens = Histogram(
            "firsthand_inter_token_seconds",
            "From a token to the next.",
            buckets=BETWEEN_TOKENS,
            registry=registry,
        )
        self.text_seconds = Histogram(
            "firsthand_text_seconds",
            "From the request to the end.",
            buckets=FIRST_TOKEN,
            registry=registry,
        )

    def watch(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Show a number that is asked for at each look."""
        Gauge(f"firsthand_{name}", meaning, registry=self._registry).set_function(value)

    def page(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)
