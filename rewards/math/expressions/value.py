"""Values of formulas, and how two of them are compared.

A rational value is an exact `Fraction`. Any other value is an mpmath number with `PRECISION_BITS` bits (96 digits).
"""

import threading
import time
from fractions import Fraction
from typing import Any

from volley.rewards.math.expressions.limits import extend_deadline

PRECISION_BITS = 320
RELATIVE_ERROR = 1e-85
"""Rounding errors are below this share of the largest summand that was met during the evaluation."""
RELIABLE_SIZE = 1e-40
"""A result below this share of the largest summand has lost too many digits to be told from 0."""

Value = Any
"""A Fraction, or an mpmath number where the value is not rational."""

_local = threading.local()


class NoValueError(Exception):
    """The formula is undefined at this point, or its value is too large to compute."""


def mp_context() -> Any:
    """The mpmath context of this thread. mpmath keeps its precision there, so threads must not share one."""
    if not hasattr(_local, "context"):
        started = time.thread_time()
        import mpmath

        extend_deadline(time.thread_time() - started)  # the import must not count against the first answer
        _local.context = mpmath.MPContext()
        _local.context.prec = PRECISION_BITS
    return _local.context


def equal_values(one: tuple[Value, Value], other: tuple[Value, Value]) -> bool:
    """Return whether two results of `evaluate` are the same number.

    Each is a value and its scale, the largest summand met. Raises NoValueError where rounding may hide a difference.
    """
    (a, scale_a), (b, scale_b) = one, other
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    a, b = as_mp(a), as_mp(b)
    size = max(abs(a), abs(b))
    scale = max(size, scale_a, scale_b)
    if abs(a - b) > scale * RELATIVE_ERROR:
        return False
    if scale * RELATIVE_ERROR < size < scale * RELIABLE_SIZE:
        raise NoValueError
    return True


def is_real(value: Value) -> bool:
    """Return whether a value is real, up to rounding errors."""
    return isinstance(value, Fraction) or value.imag == 0 or abs(value.imag) < abs(value.real) * RELATIVE_ERROR


def as_real(value: Value) -> Value:
    """Return the real part of a value that is real. Raises NoValueError for any other."""
    if not is_real(value):
        raise NoValueError
    return value if isinstance(value, Fraction) else value.real


def compare_reals(one: Value, other: Value) -> int:
    """Return -1, 0 or 1 if `one` is less than, equal to or greater than `other`, up to rounding errors."""
    if equal_values((one, mp_context().zero), (other, mp_context().zero)):
        return 0
    return -1 if as_mp(one) < as_mp(other) else 1


def midpoint(one: Value, other: Value) -> Value:
    """Return the mean of two values, exact if both are exact."""
    return (one + other) / 2 if type(one) is type(other) else (as_mp(one) + as_mp(other)) / 2


def as_mp(value: Value) -> Value:
    """Convert a value to an mpmath number."""
    if not isinstance(value, Fraction):
        return value
    ctx = mp_context()
    return ctx.mpf(value.numerator) / value.denominator
