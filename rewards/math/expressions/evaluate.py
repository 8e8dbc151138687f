"""Evaluates a formula at a point: exactly if the value is rational, otherwise with 96 digits.

Every result is bounded before it is computed:

- rational numbers by their bits (at a point, larger ones are rounded),
- powers and factorials by the size of the result,
- arguments of functions by their magnitude.

So the work for one formula is at most a constant times its number of nodes. `limits` bounds the sum over formulas.

Odd roots of negative numbers, and rational powers with an odd denominator, are real, as taught in school. All other
functions take their principal values.
"""

import math
from collections.abc import Callable, Mapping
from fractions import Fraction

from volley.rewards.math.expressions.limits import check_limits, count_steps
from volley.rewards.math.expressions.tree import Node, symbols
from volley.rewards.math.expressions.value import (
    PRECISION_BITS,
    RELATIVE_ERROR,
    NoValueError,
    Value,
    as_mp,
    as_real,
    is_real,
    mp_context,
)

MAX_BITS_AT_POINT = 4096
"""Size of a rational value at a point. Larger ones are rounded."""
MAX_BITS = 16_384
"""Size of a rational value of a formula without symbols. Larger ones have no value."""
MAX_GAP_BITS = 200
"""Difference in magnitude of two summands. Beyond it, rounding would hide the smaller one."""
MAX_MAGNITUDE = 20_000
"""Largest binary logarithm of a value."""
MAX_ARGUMENT_BITS = 64
MAX_EXPONENT_BITS = 14
"""Magnitude of the argument of exp and of the hyperbolic functions."""
MAX_FACTORIAL = 500
GAMMA_STEPS = 10
"""Cost of one value of the gamma function, in steps."""
ZERO_THRESHOLD = Fraction(1, 10**80)
"""A rounded value closer to 0 counts as 0."""

_E = Node("constant", name="e")
_GROWING = ("exp", "sinh", "cosh", "tanh")


def constant_value(node: Node) -> Value:
    """Return the value of a formula without symbols. Raises NoValueError."""
    return evaluate(node)[0]


def evaluate(node: Node, point: Mapping[str, Fraction] | None = None, real_only: bool = False) -> tuple[Value, Value]:
    """Return the value of a formula and its scale.

    The scale is the largest absolute value among the summands that were met. Rounding errors are relative to it.

    Args:
        node: the formula.
        point: the values of its symbols.
        real_only: whether a result that is not real, also an intermediate one, counts as undefined.

    Raises:
        NoValueError: the formula is undefined at the point, or a result would be too large.
        StepLimitError: within `step_limit`, if the steps are used up.
        TimeLimitError: within `time_limit`, if the time is used up.
    """
    check_limits()
    work = _Evaluation(point or {}, real_only)
    try:
        value = work.value(node)
    except (ArithmeticError, ValueError, TypeError, RecursionError):
        raise NoValueError from None
    finally:
        count_steps(work.steps)
    return value, work.scale


class _Evaluation:
    """One evaluation, with its scale and the number of its steps. All methods raise NoValueError."""

    def __init__(self, point: Mapping[str, Fraction], real_only: bool) -> None:
        self._point = point
        self._real_only = real_only
        self._max_bits = MAX_BITS_AT_POINT if point else MAX_BITS
        self._ctx = mp_context()
        self.scale: Value = self._ctx.zero
        self.steps = 0

    def value(self, node: Node) -> Value:
        self.steps += 1
        if node.op == "number":
            return self._bounded(node.number)
        if node.op == "lone-symbol":
            return self.value(node.parts[0])
        if node.op == "symbol":
            if node.name not in self._point:
                raise NoValueError
            return self._point[node.name]
        if node.op == "constant":
            return {"pi": self._ctx.pi, "e": self._ctx.e, "i": self._ctx.mpc(0, 1)}[node.name] * 1
        if node.op == "function":
            return self._bounded(self._function(node))
        method = _OPERATIONS.get(node.op)
        if method is None:
            raise NoValueError
        if node.op == "power" and node.parts[0] == _E:
            return self._bounded(self._exponential(self.value(node.parts[1])))
        values = [self.value(part) for part in node.parts]
        if node.op == "power" and self._real_only and symbols(node.parts[1]):
            self._check_base(*values)
        return self._bounded(method(self, *values))

    def _check_base(self, base: Value, exponent: Value) -> None:
        """Refuse powers such as (-1)^n at points where n is not an integer.

        Some of these powers are real, but as a function of n the formula is real at integers only.
        """
        if as_real(base) < 0 and not (isinstance(exponent, Fraction) and exponent.denominator == 1):
            raise NoValueError

    def _exponential(self, exponent: Value) -> Value:
        if self._magnitude(exponent) > MAX_EXPONENT_BITS:
            raise NoValueError
        return self._ctx.exp(as_mp(exponent))

    def _bounded(self, value: Value) -> Value:
        """Return a result, rounded if it is a long fraction at a point. Refuse what is too large or not real."""
        if isinstance(value, Fraction):
            bits = max(value.numerator.bit_length(), value.denominator.bit_length())
            if bits <= self._max_bits:
                return value
            if not self._point:  # without a point, rational numbers stay exact
                raise NoValueError
            return self._bounded(as_mp(value))
        if not self._ctx.isfinite(value) or (value and abs(self._magnitude(value)) > MAX_MAGNITUDE):
            raise NoValueError
        if value.imag == 0:
            return value.real
        if self._real_only:
            raise NoValueError
        return value

    def _magnitude(self, value: Value) -> int:
        """Return the binary logarithm of an absolute value, rounded up."""
        if isinstance(value, Fraction):
            return value.numerator.bit_length() - value.denominator.bit_length()
        return int(self._ctx.mag(value)) if value else 0

    def _sum(self, left: Value, right: Value) -> Value:
        if isinstance(left, Fraction) and isinstance(right, Fraction):
            return left + right
        if left and right and abs(self._magnitude(left) - self._magnitude(right)) > MAX_GAP_BITS:
            raise NoValueError
        left, right = as_mp(left), as_mp(right)
        size, total = max(abs(left), abs(right)), left + right
        self.scale = max(self.scale, size)
        return total if abs(total) > size * RELATIVE_ERROR else self._ctx.zero

    def _product(self, left: Value, right: Value) -> Value:
        return as_mp(left) * as_mp(right) if type(left) is not type(right) else left * right

    def _quotient(self, left: Value, right: Value) -> Value:
        if self._is_zero(right):
            raise NoValueError
        return as_mp(left) / as_mp(right) if type(left) is not type(right) else left / right

    def _is_zero(self, value: Value) -> bool:
        return value == 0 if isinstance(value, Fraction) else bool(abs(value) < as_mp(ZERO_THRESHOLD))

    def _minus(self, inside: Value) -> Value:
        return -inside

    def _degrees(self, inside: Value) -> Value:
        return as_mp(inside) * self._ctx.pi / 180

    def _ratio(self, *parts: Value) -> Value:
        if len(parts) != 2:
            raise NoValueError
        return self._quotient(*parts)

    def _power(self, base: Value, exponent: Value) -> Value:
        if self._is_zero(base):
            if not is_real(exponent) or exponent.real <= 0:
                raise NoValueError
            return Fraction(0)
        if not isinstance(exponent, Fraction) and abs(exponent) > MAX_MAGNITUDE**2:
            raise NoValueError
        # The result has about this many bits. They are checked before it is computed.
        bits = math.ceil(abs(exponent)) * max(1, abs(self._magnitude(base)))
        if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
            longest = max(base.numerator.bit_length(), base.denominator.bit_length())
            if abs(exponent) * longest <= self._max_bits:
                return base ** int(exponent)
            if not self._point:
                raise NoValueError
        if bits > MAX_MAGNITUDE:
            raise NoValueError
        if isinstance(exponent, Fraction) and exponent.denominator > 1:
            return self._root_power(base, exponent)
        exponent = int(exponent) if isinstance(exponent, Fraction) else exponent
        return self._ctx.power(as_mp(base), exponent)

    def _root(self, radicand: Value, index: Value) -> Value:
        if not isinstance(index, Fraction) or index == 0:
            return self._power(radicand, self._quotient(Fraction(1), index))
        return self._power(radicand, 1 / index)

    def _root_power(self, base: Value, exponent: Fraction) -> Value:
        """Raise a base to a fraction, as a power of a root. Square roots of rational squares are exact."""
        numerator, index = exponent.numerator, exponent.denominator
        if index > MAX_MAGNITUDE:
            return self._ctx.power(as_mp(base), as_mp(exponent))
        if isinstance(base, Fraction) and index == 2 and base > 0:
            root = Fraction(math.isqrt(base.numerator), math.isqrt(base.denominator))
            if root * root == base:
                return self._power(root, Fraction(numerator))
        if is_real(base) and as_real(base) < 0 and index % 2:
            root = -self._ctx.root(-as_mp(as_real(base)), index)
        else:
            root = self._ctx.root(as_mp(base), index)
        return self._ctx.power(root, numerator)

    def _factorial(self, inside: Value) -> Value:
        if isinstance(inside, Fraction) and inside.denominator == 1:
            if not 0 <= inside <= MAX_FACTORIAL:
                raise NoValueError
            return Fraction(math.factorial(int(inside)))
        if abs(inside) > MAX_FACTORIAL:
            raise NoValueError
        self.steps += GAMMA_STEPS
        return self._ctx.gamma(as_mp(inside) + 1)

    def _binomial(self, n: Value, k: Value) -> Value:
        if max(abs(n), abs(k)) > MAX_FACTORIAL:
            raise NoValueError
        if isinstance(n, Fraction) and isinstance(k, Fraction) and n.denominator == k.denominator == 1:
            if n < 0 or k < 0:
                raise NoValueError
            return Fraction(math.comb(int(n), int(k)))
        self.steps += 3 * GAMMA_STEPS
        return self._ctx.binomial(as_mp(n), as_mp(k))

    def _function(self, node: Node) -> Value:
        arguments = [self.value(part) for part in node.parts]
        value, ctx = arguments[0], self._ctx
        if node.name == "abs":
            return abs(value)
        if node.name in ("floor", "ceil"):
            return self._floor_or_ceiling(value, node.name)
        if node.name == "sqrt":
            return self._power(value, Fraction(1, 2))
        if node.name == "log":
            return self._quotient(self._logarithm(arguments[0]), self._logarithm(arguments[1]))
        if node.name == "ln":
            return self._logarithm(value)
        if self._magnitude(value) > (MAX_EXPONENT_BITS if node.name in _GROWING else MAX_ARGUMENT_BITS):
            raise NoValueError
        if node.name in ("cot", "sec", "csc", "tan"):
            sine, cosine = ctx.sin(as_mp(value)), ctx.cos(as_mp(value))
            numerator, denominator = {
                "tan": (sine, cosine),
                "cot": (cosine, sine),
                "sec": (ctx.mpf(1), cosine),
                "csc": (ctx.mpf(1), sine),
            }[node.name]
            return self._quotient(numerator, denominator)
        name = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}.get(node.name, node.name)
        if name not in ("sin", "cos"):
            return getattr(ctx, name)(as_mp(value))
        # Near its zeros the error of a sine is the rounding error of the argument, which is relative to its size.
        size, result = max(abs(as_mp(value)), ctx.one), getattr(ctx, name)(as_mp(value))
        self.scale = max(self.scale, size)
        return result if abs(result) > size * RELATIVE_ERROR else ctx.zero

    def _logarithm(self, value: Value) -> Value:
        if self._is_zero(value):
            raise NoValueError
        return Fraction(0) if value == 1 else self._ctx.ln(as_mp(value))

    def _floor_or_ceiling(self, value: Value, name: str) -> Value:
        value = as_real(value)
        if isinstance(value, Fraction):
            return Fraction(math.floor(value) if name == "floor" else math.ceil(value))
        if self._magnitude(value) > PRECISION_BITS // 2:
            raise NoValueError
        nearest = int(self._ctx.nint(value))
        if abs(value - nearest) < as_mp(ZERO_THRESHOLD):
            return Fraction(nearest)
        return Fraction(int((self._ctx.floor if name == "floor" else self._ctx.ceil)(value)))


_OPERATIONS: dict[str, Callable[..., Value]] = {
    "sum": _Evaluation._sum,
    "product": _Evaluation._product,
    "quotient": _Evaluation._quotient,
    "minus": _Evaluation._minus,
    "power": _Evaluation._power,
    "root": _Evaluation._root,
    "factorial": _Evaluation._factorial,
    "binomial": _Evaluation._binomial,
    "degrees": _Evaluation._degrees,
    "ratio": _Evaluation._ratio,
}
