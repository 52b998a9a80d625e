"""The scheduler on a thread of its own, for callers on an event loop.

The loop stays free while the engine computes, and the engine goes from step to step without
waiting for any client.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeAlias

from firsthand.llm.generation.results import Piece
from firsthand.llm.inference.metrics import Metrics
from firsthand.llm.inference.scheduler import Event, Failure, Scheduler, Text

# Texts beyond the slots; each has a prompt of at most a context.
WAITING = 256
SECONDS = 600.0


class Busy(Exception):
    """As many texts as the service takes are on their way."""


class Late(Exception):
    """A text was not finished in its time."""


class Closed(Exception):
    """The service takes no texts any more: it is ending, or its thread has failed."""


Delivery: TypeAlias = tuple["Submission", int, Piece | Exception]


class Submission:
    """Some texts of one request, and their pieces as they come.

    The queue holds no more than all tokens of the texts, so that a client that reads slowly holds
    nobody up and costs little.
    """

    def __init__(self, service: Service, texts: Sequence[Text]) -> None:
        self.numbers = [text.row.number for text in texts]
        self.submitted = time.monotonic()
        self.loop = asyncio.get_running_loop()
        self._service, self._going = service, len(texts)
        self._queue: asyncio.Queue[tuple[int, Piece | Exception]] = asyncio.Queue()

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """(which of the texts, piece); a text's last one has its result.

        Raises:
            Late, Closed: of the service.
            GenerationError, InferenceError, Exception: of the model or the engine.
        """
        while self._going:
            index, item = await self._queue.get()
            if isinstance(item, Exception):
                self.cancel()
                raise item
            self._going -= item.result is not None
            yield index, item

    def cancel(self) -> None:
        """Give up what is not finished; its slots are free with the next step."""
        if self._going:
            self._going = 0
            self._service.cancel(self)

    def put(self, index: int, item: Piece | Exception) -> None:
        """For the service, on the loop."""
        self._queue.put_nowait((index, item))


class _Ticket:
    """Whose a text is, and when it had its newest token."""

    def __init__(self, submission: Submission, index: int) -> None:
        self.submission, self.index = submission, index
        self.newest: float | None = None


class Service:
    """Texts of many callers on one scheduler.

    Args:
        scheduler: belongs to the service from now on.
        waiting: texts that may wait beside those in the slots.
        seconds: that a text may take, its wait included.
    """

    def __init__(
        self, scheduler: Scheduler, *, waiting: int = WAITING, seconds: float = SECONDS
    ) -> None:
        self.scheduler, self.metrics = scheduler, Metrics()
        self.most = scheduler.engine.slots + waiting
        self._seconds = seconds
        self._condition = threading.Condition()
        self._inbox: deque[Callable[[], None]] = deque()
        self._open = 0
        self._tickets: dict[int, _Ticket] = {}
        self._closed = True
        self._thread: threading.Thread | None = None
        watch = self.metrics.watch
        watch("slots", "Texts that can run at once.", lambda: scheduler.engine.slots)
        watch("texts_running", "Texts in a slot.", lambda: scheduler.running)
        watch("texts_waiting", "Texts without a slot.", lambda: self.waiting)

    @property
    def waiting(self) -> int:
        """Texts that were submitted and have no slot."""
        return max(0, self._open - self.scheduler.running)

    @property
    def alive(self) -> bool:
        """Whether texts are taken."""
        return not self._closed

    def start(self) -> None:
        """Begin to take texts."""
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End after the step that runs; texts on their way are told `Closed`."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def submit(self, texts: Sequence[Text]) -> Submission:
        """Let texts wait for their turn, all or none of them; on an event loop.

        Args:
            texts: from `Scheduler.prepare`, at least one.
        Raises:
            Busy: too many texts are on their way.
            Closed: after the end.
        """
        submission = Submission(self, texts)

        def enter() -> None:
            for index, text in enumerate(texts):
                self.scheduler.add(text)
                self._tickets[text.row.number] = _Ticket(submission, index)
                self.metrics.prompt_tokens.inc(len(text.row.prompt))

        with self._condition:
            if self._closed:
                raise Closed("the server is ending")
            if self._open + len(texts) > self.most:
                raise Busy(f"{self._open} texts are on their way, and at most {self.most} may be")
            self._open += len(texts)
            self._inbox.append(enter)
            self._condition.notify()
        return submission

    def cancel(self, submission: Submission) -> None:
        """Give up the texts of a submission that are not finished; any thread may call this."""

        def leave() -> None:
            for number in submission.numbers:
                if number in self._tickets:
                    self.scheduler.cancel(number)
                    self._finish(number, "cancelled")

        with self._condition:
            self._inbox.append(leave)
            self._condition.notify()

    # The rest runs on the service's thread.

    def _run(self) -> None:
        try:
            while self._read_inbox():
                late = self._expired()
                self._deliver([*late, *map(self._noted, self.scheduler.step())])
            self._end(Closed("the server is ending"))
        except BaseException as error:
            self._closed = True
            self._end(Closed(f"the server has failed: {type(error).__name__}: {error}"))
            raise

    def _read_inbox(self) -> bool:
        """Do what callers ask for; wait for it when there is nothing else. False at the end."""
        with self._condition:
            while not (self._inbox or self._tickets or self._closed):
                self._condition.wait()
            if self._closed:
                return False
            orders = list(self._inbox)
            self._inbox.clear()
        for order in orders:
            order()
        return True

    def _expired(self) -> list[Delivery]:
        """Texts over their time; the tickets are in the order of submission."""
        late: list[Delivery] = []
        limit = time.monotonic() - self._seconds
        for number, ticket in list(self._tickets.items()):
            if ticket.submission.submitted > limit:
                break
            self.scheduler.cancel(number)
            self._finish(number, "late")
            error = Late(f"the text was not finished in {self._seconds:g} seconds")
            late.append((ticket.submission, ticket.index, error))
        return late

    def _noted(self, event: Event) -> Delivery:
        ticket = self._tickets[event.row]
        if isinstance(event, Failure):
            self._finish(event.row, "failed")
            return ticket.submission, ticket.index, event.error
        now = time.monotonic()
        if ticket.newest is None:
            self.metrics.first_token.observe(now - ticket.submission.submitted)
        else:
            self.metrics.between_tokens.observe(now - ticket.newest)
        ticket.newest = now
        self.metrics.generated_tokens.inc()
        if event.result is not None:
            self.metrics.text_seconds.observe(now - ticket.submission.submitted)
            self._finish(event.row, event.result.reason)
        return ticket.submission, ticket.index, event

    def _finish(self, number: int, reason: str) -> None:
        del self._tickets[number]
        self.metrics.texts.labels(reason).inc()
        with self._condition:
            self._open -= 1

    def _deliver(self, deliveries: Sequence[Delivery]) -> None:
        """Hand the news over in one call for each loop."""
        loops: dict[asyncio.AbstractEventLoop, list[Delivery]] = {}
        for delivery in deliveries:
            loops.setdefault(delivery[0].loop, []).append(delivery)
        for loop, news in loops.items():
            try:
                loop.call_soon_threadsafe(_put, news)
            except RuntimeError:  # the loop has ended and nobody waits any more
                for submission, _, _ in news:
                    submission.cancel()

    def _end(self, error: Closed) -> None:
        """Tell everyone on their way, those in the inbox included."""
        with self._condition:
            orders = list(self._inbox)
            self._inbox.clear()
        for order in orders:
            order()
        tickets = list(self._tickets.items())
        for number, _ in tickets:
            self.scheduler.cancel(number)
            self._finish(number, "cancelled")
        self._deliver([(ticket.submission, ticket.index, error) for _, ticket in tickets])


def _put(news: Sequence[Delivery]) -> None:
    for submission, index, item in news:
        submission.put(index, item)
