"""The driver's side of a scoring process: sends items, receives results, and enforces the time limit."""

import asyncio
import math
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from volley.rewards.item import TIMED_OUT, Item, Outcome
from volley.rewards.rubric.rubric import Extraction
from volley.rewards.scoring.launch import died_loading, kill
from volley.rewards.scoring.messages import decode, encode
from volley.rollout.errors import RewardError

LOW_WATER_MARK = 4
"""A process with this many items left may be sent more, so that it never has to wait for them."""
MAX_PAUSE_S = 0.005
MIN_PAUSE_S = 0.0005


@dataclass(eq=False, slots=True)
class Work:
    """One item on its way through a scoring process."""

    outcomes: list[Outcome | None]
    """One per term; None for the terms that the process has to compute."""
    message: bytes
    """The item, encoded for the process."""
    done: "asyncio.Future[None]"
    """Set when all outcomes are there."""

    @classmethod
    def of(
        cls,
        item: Item,
        outcomes: list[Outcome | None],
        missing: Sequence[int],
        extraction: Extraction | None = None,
    ) -> "Work":
        """Encode an item. Call it on the event loop. Raises TypeError for a row that JSON cannot represent.

        missing: the indices of the terms to compute. extraction: given if the extracted answer is all that they need;
        the prompt and the response are then not sent.
        """
        texts = (None, item.prompt, item.response) if extraction is None else ([extraction.text], "", "")
        message = encode([missing, *texts, item.answer, item.num_tokens, item.truncated, dict(item.row)])
        return cls(outcomes, message, asyncio.get_running_loop().create_future())

    def complete(self, error: str = "", seconds: float = 0.0) -> None:
        """End the work. The first missing term failed with this error after this time; later ones were never run."""
        for index, outcome in enumerate(self.outcomes):
            if outcome is None:
                self.outcomes[index] = Outcome(math.nan, error, seconds)
                error, seconds = "", 0.0
        if not self.done.done():
            self.done.set_result(None)


class Child(asyncio.Protocol):
    """One scoring process. It is killed when an item exceeds the time limit."""

    def __init__(
        self, process: "subprocess.Popen[bytes]", labels: Sequence[str], timeout_s: float, on_idle: Callable[[], None]
    ) -> None:
        """labels: of the terms, for error messages. on_idle: called when few items are left."""
        self._loop = asyncio.get_running_loop()
        self.process = process
        self.loading = ""
        """The reward that is being imported."""
        self.ready: asyncio.Future[None] = self._loop.create_future()
        """Done when all rewards are loaded; fails with RewardError."""
        self.ended = asyncio.Event()
        """Set when the process is dead; `work` then holds the items that it had not started."""
        self.work: deque[Work] = deque()
        """The items that were sent and have no result yet."""
        self._labels = labels
        self._timeout_s = timeout_s
        self._on_idle = on_idle
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._deadline = 0.0
        self._is_late = False
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._mean_term_s = 0.0
        self._pause_timer: asyncio.TimerHandle | None = None

    @property
    def is_up(self) -> bool:
        """Whether the process is ready and alive."""
        return self.ready.done() and not self.ended.is_set()

    def send(self, batch: Sequence[Work]) -> None:
        """Send items; the process computes them one after the other."""
        assert self._transport is not None
        was_idle = not self.work
        self.work.extend(batch)
        self._transport.write(b"".join(work.message for work in batch))
        if was_idle:
            self._start_clock()

    def end(self, reason: str = "") -> None:
        """Kill the process and everything it started. With a reason, the item in progress fails."""
        if self.ended.is_set():
            return
        kill(self.process)
        if self._transport is not None:
            self._transport.abort()
        for timer in (self._deadline_timer, self._pause_timer):
            if timer is not None:
                timer.cancel()
        if self.work and reason:
            work = self.work.popleft()
            seconds = self._loop.time() - self._deadline + self._timeout_s
            work.complete(f"reward '{self._labels[work.outcomes.index(None)]}': {reason}", seconds)
        self.ready.cancel()
        self.ended.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # The transports of uvloop, which Ray's actors use, do not inherit from asyncio.Transport.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ready.done():
            self.ready.set_exception(died_loading(self.loading))
        self.end("its process died")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        for message in decode(self._buffer):
            if isinstance(message[0], str):
                self._on_status(*message)
            else:
                self._on_outcome(*message)
        self._pause_reading()

    def _pause_reading(self) -> None:
        """Stop reading the socket until few items are left, because waking up for every result is expensive.

        Everything that has arrived is read before a process is killed, so failures are still assigned to the right
        item.
        """
        seconds = min(MAX_PAUSE_S, (len(self.work) - LOW_WATER_MARK) * self._mean_term_s)
        if self._transport is not None and seconds > MIN_PAUSE_S and not self.ended.is_set():
            self._transport.pause_reading()
            self._pause_timer = self._loop.call_later(seconds, self._transport.resume_reading)

    def _on_status(self, status: str, text: str = "") -> None:
        if status == "loading":
            self.loading = text
        elif status == "ready" and not self.ready.done():
            self.ready.set_result(None)
        elif status == "failed" and not self.ready.done():
            self.ready.set_exception(RewardError(text))

    def _on_outcome(self, term: int, value: float | None, error: str, seconds: float, must_exit: bool) -> None:
        if self.ended.is_set():
            return
        work = self.work[0]
        work.outcomes[term] = Outcome(math.nan if value is None else value, error, seconds)
        self._mean_term_s += (seconds - self._mean_term_s) / 4
        if must_exit or None not in work.outcomes:
            self.work.popleft().complete()
            self._start_clock()
        if must_exit:
            self.end()
        elif len(self.work) <= LOW_WATER_MARK:
            self._on_idle()

    def _start_clock(self) -> None:
        """Start the time limit of the first item of `work`."""
        self._deadline = self._loop.time() + self._timeout_s
        self._is_late = False
        if self._deadline_timer is None and self.work:
            self._deadline_timer = self._loop.call_at(self._deadline, self._check_deadline)

    def _check_deadline(self) -> None:
        self._deadline_timer = None
        is_over = bool(self.work) and self._loop.time() >= self._deadline
        if is_over and not self._is_late:
            # Read results that have arrived by now first: the loop runs readers before timers.
            assert self._transport is not None
            self._transport.resume_reading()
            self._is_late = True
            self._deadline_timer = self._loop.call_later(0, self._check_deadline)
        elif is_over:
            self.end(f"{TIMED_OUT} {self._timeout_s:g} s")
        elif self.work:
            self._deadline_timer = self._loop.call_at(self._deadline, self._check_deadline)
