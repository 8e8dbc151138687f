"""A scoring child as its parent sees it: own program, own session, clean environment, one socket, one clock."""

import asyncio
import contextlib
import dataclasses
import math
import os
import re
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import volley
from volley.rewards.config import RewardConfig
from volley.rewards.item import TIMED_OUT, Item
from volley.rewards.scoring.child import decode, encode
from volley.rewards.scoring.rubric import Reading
from volley.rewards.terms import Outcome
from volley.rollout.errors import RewardError

_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from volley.rewards.scoring.child import main; main()"
_SECRET = re.compile(r"(^|_)(TOKENS?|(API)?KEYS?|SECRETS?|PASSWORD|PASSWD|CREDENTIALS?)(_|$)|^RAY_AUTH_|^WANDB_")
START_TIMEOUT_S = 60.0
FEW = 4
"""Items left to a child that may be given more before it has to wait for them."""
MAX_REST_S = 0.005
MIN_REST_S = 0.0005
STANDARD_ERROR = 2


def clean_environment() -> dict[str, str]:
    """This process's environment without whatever is called like a secret; one thread for numerical libraries, and
    hashes that are the same in every child, so that the same response always gets the same score."""
    environment = {name: value for name, value in os.environ.items() if not _SECRET.search(name.upper())}
    return environment | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}


def launch(
    terms: Sequence[RewardConfig], columns: Collection[str] | None, cpu_s: int, memory_bytes: int, network: bool
) -> tuple["subprocess.Popen[bytes]", socket.socket]:
    """Start a child for these rewards; returns it and our end of its socket.

    It dies with the *thread* that calls this (that is what the kernel watches), so call it from one that lasts. Raises
    RewardError for options that JSON cannot hold, OSError where the system has no process left.
    """
    setup: dict[str, Any] = {
        "terms": [dataclasses.asdict(term) for term in terms],
        "columns": None if columns is None else sorted(columns),
        "path": [entry or os.getcwd() for entry in sys.path],
        "cpu_s": cpu_s,
        "memory_bytes": memory_bytes,
        "network": network,
    }
    try:
        message = encode(setup)
    except TypeError as error:
        raise RewardError(
            f"rewards: an option is no plain value ({error}); write dates and the like in quotes."
        ) from None
    ours, theirs = socket.socketpair()
    root = str(Path(volley.__file__).parent.parent)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, root, str(theirs.fileno()), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=STANDARD_ERROR,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            env=clean_environment(),
        )
    with contextlib.suppress(OSError):  # a child that is dead already shows when we read
        ours.sendall(message)
    return process, ours


def kill(process: "subprocess.Popen[bytes]") -> None:
    """End a child and what it started, at once. Not after it has been waited for: its id may be another's by then."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def died_loading(name: str) -> RewardError:
    return RewardError(f"{_subject(name)} cannot be imported: the process ends; look for an exit in the module.")


def too_slow_loading(name: str, seconds: float) -> RewardError:
    return RewardError(
        f"{_subject(name)} hangs at import (given up after {seconds:g} s); move what takes so long into the function."
    )


def _subject(name: str) -> str:
    """How an error about a reward begins; the name is "" before the first was begun."""
    return f"reward '{name}'" if name else "rewards: a scoring process"


@dataclass(eq=False, slots=True)
class Work:
    """One item on its way through a child. outcomes: by term, None where the child is to compute it. message: the item
    as the child reads it. done: set when no outcome is None any more."""

    outcomes: list[Outcome | None]
    message: bytes
    done: "asyncio.Future[None]"

    @classmethod
    def of(
        cls, item: Item, outcomes: list[Outcome | None], terms: Sequence[int], reading: Reading | None = None
    ) -> "Work":
        """terms: those that are missing. reading: where it is all that they need; then the response stays here.
        Raises TypeError for a row that JSON cannot hold. Call it on the event loop."""
        texts = (None, item.prompt, item.response) if reading is None else ([reading.text], "", "")
        message = encode([terms, *texts, item.answer, item.num_tokens, item.truncated, dict(item.row)])
        return cls(outcomes, message, asyncio.get_running_loop().create_future())

    def finish(self, error: str = "", seconds: float = 0.0) -> None:
        """No more outcomes will come: the first one missing failed for this reason after so long, others behind it
        never ran."""
        for index, outcome in enumerate(self.outcomes):
            if outcome is None:
                self.outcomes[index] = Outcome(math.nan, error, seconds)
                error, seconds = "", 0.0
        if not self.done.done():
            self.done.set_result(None)


class Child(asyncio.Protocol):
    """Our end of a child's socket: hands it items, takes its answers, and ends it when an item takes too long.

    labels: of the terms, for reasons. ready: done once all rewards are loaded; fails with RewardError. ended: set once
    the child is killed or dead; `work` then holds what it had not begun. on_idle: called when little is left to it.
    """

    def __init__(
        self, process: "subprocess.Popen[bytes]", labels: Sequence[str], timeout_s: float, on_idle: Callable[[], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.process = process
        self.loading = ""
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.ended = asyncio.Event()
        self.work: deque[Work] = deque()
        self._labels = labels
        self._timeout_s = timeout_s
        self._on_idle = on_idle
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._deadline = 0.0
        self._is_late = False
        self._timer: asyncio.TimerHandle | None = None
        self._term_s = 0.0
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def is_up(self) -> bool:
        return self.ready.done() and not self.ended.is_set()

    def give(self, batch: Sequence[Work]) -> None:
        """Send items; the child works on them one after the other."""
        assert self._transport is not None
        was_idle = not self.work
        self.work.extend(batch)
        self._transport.write(b"".join(work.message for work in batch))
        if was_idle:
            self._start_clock()

    def end(self, reason: str = "") -> None:
        """Kill the child and whatever it started. The item in progress fails for `reason`, if one is given."""
        if self.ended.is_set():
            return
        kill(self.process)
        if self._transport is not None:
            self._transport.abort()
        for timer in (self._timer, self._alarm):
            if timer is not None:
                timer.cancel()
        if self.work and reason:
            work = self.work.popleft()
            seconds = self._loop.time() - self._deadline + self._timeout_s
            work.finish(f"reward '{self._labels[work.outcomes.index(None)]}': {reason}", seconds)
        self.ready.cancel()
        self.ended.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ready.done():
            self.ready.set_exception(died_loading(self.loading))
        self.end("its process died")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        for message in decode(self._buffer):
            if isinstance(message[0], str):
                self._take_news(*message)
            else:
                self._take_answer(*message)
        self._rest()

    def _rest(self) -> None:
        """Leave the socket alone until the child has few items left: to be woken for every answer costs as much as to
        take it. What is there is read before a child is ended, so blame stays exact."""
        seconds = min(MAX_REST_S, (len(self.work) - FEW) * self._term_s)
        if self._transport is not None and seconds > MIN_REST_S and not self.ended.is_set():
            self._transport.pause_reading()
            self._alarm = self._loop.call_later(seconds, self._transport.resume_reading)

    def _take_news(self, what: str, text: str = "") -> None:
        if what == "loading":
            self.loading = text
        elif what == "ready" and not self.ready.done():
            self.ready.set_result(None)
        elif what == "failed" and not self.ready.done():
            self.ready.set_exception(RewardError(text))

    def _take_answer(self, term: int, value: float | None, error: str, seconds: float, leaving: bool) -> None:
        if self.ended.is_set():
            return
        work = self.work[0]
        work.outcomes[term] = Outcome(math.nan if value is None else value, error, seconds)
        self._term_s += (seconds - self._term_s) / 4
        if leaving or None not in work.outcomes:
            self.work.popleft().finish()
            self._start_clock()
        if leaving:
            self.end()
        elif len(self.work) <= FEW:
            self._on_idle()

    def _start_clock(self) -> None:
        """The first item of `work` starts now."""
        self._deadline = self._loop.time() + self._timeout_s
        self._is_late = False
        if self._timer is None and self.work:
            self._timer = self._loop.call_at(self._deadline, self._look_at_clock)

    def _look_at_clock(self) -> None:
        self._timer = None
        is_over = bool(self.work) and self._loop.time() >= self._deadline
        if is_over and not self._is_late:
            # Answers that have arrived by now are taken first: the loop runs readers before timers.
            assert self._transport is not None
            self._transport.resume_reading()
            self._is_late = True
            self._timer = self._loop.call_later(0, self._look_at_clock)
        elif is_over:
            self.end(f"{TIMED_OUT} {self._timeout_s:g} s")
        elif self.work:
            self._timer = self._loop.call_at(self._deadline, self._look_at_clock)
