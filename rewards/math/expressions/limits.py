"""Limits on the work that one verdict may take: a number of steps, and seconds of processor time.

The size of every intermediate result is bounded (`evaluate`), so the work for one formula is bounded as well. Comparing
two long lists takes many formulas, so all comparisons of one verdict share a limit in steps. A step is the same on
every machine, so whether an answer is right does not depend on the machine.

The limit in seconds is for machines on which even these steps take too long. A response that exceeds it is unscorable,
neither right nor wrong. The limit counts the processor time of the current thread, so other threads and processes
cannot change a verdict.

Both limits are checked before each evaluation instead of by a signal, so they work in any thread.
"""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from volley.rewards.item import TIMED_OUT, Unscorable

MAX_STEPS = 20_000
"""Evaluation steps per verdict. They take 0.25 to 1 second; real answers need a few hundred steps."""


class _Remaining(threading.local):
    """What the current thread may still use."""

    steps = math.inf
    deadline = math.inf
    """On the clock `time.thread_time`."""
    limit_s = math.inf
    """The limit that set the deadline, for the error message."""


_remaining = _Remaining()


class StepLimitError(Exception):
    """The verdict used up its steps."""


class TimeLimitError(Unscorable):
    """The verdict used up its seconds."""


@contextmanager
def step_limit() -> Iterator[None]:
    """Allow this thread `MAX_STEPS` evaluation steps inside the context. Then StepLimitError is raised."""
    _remaining.steps = MAX_STEPS
    try:
        yield
    finally:
        _remaining.steps = math.inf


def time_limit(seconds: float) -> "_TimeLimit":
    """Allow this thread so many seconds of processor time inside the context. Then TimeLimitError is raised.

    The evaluation that exceeds the limit is finished first, which takes milliseconds. In nested contexts the earliest
    deadline applies. Raises ValueError unless `seconds` is positive.
    """
    if not seconds > 0:
        raise ValueError(f"limit_s is {seconds}; it must be above 0")
    return _TimeLimit(seconds)


class _TimeLimit:
    """The context of `time_limit`. A class, because every response enters several and a generator is slower."""

    __slots__ = ("_before", "_seconds")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        self._before = _remaining.deadline, _remaining.limit_s
        if (deadline := time.thread_time() + self._seconds) < self._before[0]:
            _remaining.deadline, _remaining.limit_s = deadline, self._seconds

    def __exit__(self, *_: object) -> None:
        _remaining.deadline, _remaining.limit_s = self._before


def check_limits() -> None:
    """Raise StepLimitError or TimeLimitError if a limit is exceeded."""
    if _remaining.steps <= 0:
        raise StepLimitError
    if time.thread_time() > _remaining.deadline:
        raise TimeLimitError(f"{TIMED_OUT} {_remaining.limit_s:g} s")


def count_steps(steps: int) -> None:
    """Subtract steps from those that this thread may still use."""
    _remaining.steps -= steps


def extend_deadline(seconds: float) -> None:
    """Exclude time that is not part of the verdict, such as a first import, from the limit in seconds."""
    _remaining.deadline += seconds
