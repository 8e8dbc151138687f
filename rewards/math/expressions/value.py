"""Values of formulas: exact where they are rational, to 96 digits where they are not; comparing them, and how much work
may go into them.

Every result of an operation is bounded in size (`evaluate`), so the work for one formula is; the comparisons of
two long lists of formulas are many, so all of them together have a bound of their own, in steps: whether an answer is
right does not depend on the machine. Where the machine is so slow that even these take too long, a limit in seconds
ends them, and then nothing is said about the answer; they are the thread's own, so that neighbours change no verdict.
Both are looked at before each value, not by signals, so that they hold in any thread.
"""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

from volley.rewards.item import TIMED_OUT, Unscorable

BITS = 320
ERROR = 1e-85
RELIABLE = 1e-40
MAX_STEPS = 20_000
"""Of evaluation, for one verdict: a quarter of a second to one. Real answers take some hundreds."""

Value = Any  # Fraction, or an mpmath number where it is not rational


class _Left(threading.local):
    """What this thread may still use, and by when."""

    steps = math.inf
    deadline = math.inf
    limit_s = math.inf


_left = _Left()
_local = threading.local()


class NoValueError(Exception):
    """The formula has no value at this point, or one too large to compute."""


class TooMuchWorkError(Exception):
    """The steps that a verdict may take are used up."""


class OutOfTimeError(Unscorable):
    """The seconds that a verdict may take are over."""


@contextmanager
def bounded_work() -> Iterator[None]:
    """Whatever this thread evaluates inside takes `MAX_STEPS` at most; then TooMuchWorkError is raised."""
    _left.steps = MAX_STEPS
    try:
        yield
    finally:
        _left.steps = math.inf


def limited_time(seconds: float) -> "_LimitedTime":
    """Whatever this thread evaluates inside takes so much of its processor time at most, and one value more
    (milliseconds); then OutOfTimeError is raised. Inside another limit, the one that ends first holds. Raises
    ValueError for no time."""
    if not seconds > 0:
        raise ValueError(f"limit_s is {seconds}; it must be above 0")
    return _LimitedTime(seconds)


class _LimitedTime:
    """No generator, because every response enters several."""

    __slots__ = ("_before", "_seconds")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        self._before = _left.deadline, _left.limit_s
        if (deadline := time.thread_time() + self._seconds) < self._before[0]:
            _left.deadline, _left.limit_s = deadline, self._seconds

    def __exit__(self, *_: object) -> None:
        _left.deadline, _left.limit_s = self._before


def check_work() -> None:
    """Raises TooMuchWorkError and OutOfTimeError."""
    if _left.steps <= 0:
        raise TooMuchWorkError
    if time.thread_time() > _left.deadline:
        raise OutOfTimeError(f"{TIMED_OUT} {_left.limit_s:g} s")


def count_work(steps: int) -> None:
    _left.steps -= steps


def context() -> Any:
    """This thread's arithmetic: mpmath keeps the precision in it, so threads must not share one."""
    if not hasattr(_local, "context"):
        started = time.thread_time()
        import mpmath

        _left.deadline += time.thread_time() - started  # the first answer does not pay for it
        _local.context = mpmath.MPContext()
        _local.context.prec = BITS
    return _local.context


def same_value(one: tuple[Value, Value], other: tuple[Value, Value]) -> bool:
    """Whether two results of `evaluate` are the same number. Raises NoValueError where rounding may hide that."""
    (a, scale_a), (b, scale_b) = one, other
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    a, b = rounded(a), rounded(b)
    size = max(abs(a), abs(b))
    scale = max(size, scale_a, scale_b)
    if abs(a - b) > scale * ERROR:
        return False
    if scale * ERROR < size < scale * RELIABLE:
        raise NoValueError
    return True


def is_real(value: Value) -> bool:
    return isinstance(value, Fraction) or value.imag == 0 or abs(value.imag) < abs(value.real) * ERROR


def as_real(value: Value) -> Value:
    """A value that can be ordered. Raises NoValueError."""
    if not is_real(value):
        raise NoValueError
    return value if isinstance(value, Fraction) else value.real


def order(one: Value, other: Value) -> int:
    """-1, 0 or 1 as one real value is less than, equal to or greater than another, rounding errors left aside."""
    if same_value((one, context().zero), (other, context().zero)):
        return 0
    return -1 if rounded(one) < rounded(other) else 1


def mean(one: Value, other: Value) -> Value:
    return (one + other) / 2 if type(one) is type(other) else (rounded(one) + rounded(other)) / 2


def rounded(value: Value) -> Value:
    if not isinstance(value, Fraction):
        return value
    ctx = context()
    return ctx.mpf(value.numerator) / value.denominator
