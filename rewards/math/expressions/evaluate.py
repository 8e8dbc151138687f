"""The value of a formula at a point, exact where it is rational and to 96 digits where it is not.

Every result is bounded before it is computed: rational numbers by their bits (at a point, larger ones are rounded),
powers and factorials by the size of what would come out, arguments of functions by their magnitude. So the work for a
formula is its number of nodes times a constant, and no clock is needed; `value` bounds their sum. Roots and
rational powers of negative numbers are real where the root is odd, as in school; otherwise functions take their
principal values.
"""

import math
from collections.abc import Callable, Mapping
from fractions import Fraction

from volley.rewards.math.expressions.formula import Node, symbols
from volley.rewards.math.expressions.limits import check_limits, count_steps
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
MAX_BITS = 16_384
MAX_GAP_BITS = 200
MAX_MAGNITUDE = 20_000
MAX_ARGUMENT_BITS = 64
MAX_FACTORIAL = 500
GAMMA_STEPS = 10
"""What a value of the gamma function costs, in other operations."""
ZERO_THRESHOLD = Fraction(1, 10**80)

_E = Node("constant", name="e")


def constant_value(node: Node) -> Value:
    """The value of a formula without symbols. Raises NoValueError."""
    return evaluate(node)[0]


def evaluate(node: Node, point: Mapping[str, Fraction] | None = None, is_real: bool = False) -> tuple[Value, Value]:
    """The value, and the largest summand met on the way, against which rounding errors are to be measured. is_real:
    whatever would leave the real numbers has no value. Raises NoValueError; StepLimitError within `step_limit`,
    TimeLimitError within `time_limit`."""
    check_limits()
    work = _Evaluation(point or {}, is_real)
    try:
        value = work.value(node)
    except (ArithmeticError, ValueError, TypeError, RecursionError):
        raise NoValueError from None
    finally:
        count_steps(work.steps)
    return value, work.scale


class _Evaluation:
    def __init__(self, point: Mapping[str, Fraction], is_real: bool) -> None:
        self._point = point
        self._is_real = is_real
        self._max_bits = MAX_BITS_AT_POINT if point else MAX_BITS
        self._ctx = mp_context()
        self.scale: Value = self._ctx.zero
        self.steps = 0

    def value(self, node: Node) -> Value:
        self.steps += 1
        if node.op == "number":
            return self._checked(node.number)
        if node.op == "lone":
            return self.value(node.parts[0])
        if node.op == "symbol":
            if node.name not in self._point:
                raise NoValueError
            return self._point[node.name]
        if node.op == "constant":
            return {"pi": self._ctx.pi, "e": self._ctx.e, "i": self._ctx.mpc(0, 1)}[node.name] * 1
        if node.op == "function":
            return self._checked(self._function(node))
        method = _OPERATIONS.get(node.op)
        if method is None:
            raise NoValueError
        if node.op == "power" and node.parts[0] == _E:
            return self._checked(self._exponential(self.value(node.parts[1])))
        values = [self.value(part) for part in node.parts]
        if node.op == "power" and self._is_real and symbols(node.parts[1]):
            self._check_base(*values)
        return self._checked(method(self, *values))

    def _check_base(self, base: Value, exponent: Value) -> None:
        """(-1)^n is real at whole numbers only, though some rational powers of -1 are."""
        if as_real(base) < 0 and not (isinstance(exponent, Fraction) and exponent.denominator == 1):
            raise NoValueError

    def _exponential(self, exponent: Value) -> Value:
        if self._magnitude(exponent) > 14:
            raise NoValueError
        return self._ctx.exp(as_mp(exponent))

    def _checked(self, value: Value) -> Value:
        if isinstance(value, Fraction):
            bits = max(value.numerator.bit_length(), value.denominator.bit_length())
            if bits <= self._max_bits:
                return value
            if not self._point:  # rational numbers are exact
                raise NoValueError
            return self._checked(as_mp(value))
        if not self._ctx.isfinite(value) or (value and abs(self._magnitude(value)) > MAX_MAGNITUDE):
            raise NoValueError
        if value.imag == 0:
            return value.real
        if self._is_real:
            raise NoValueError
        return value

    def _magnitude(self, value: Value) -> int:
        """The binary logarithm of an absolute value, rounded up."""
        if isinstance(value, Fraction):
            return value.numerator.bit_length() - value.denominator.bit_length()
        return int(self._ctx.mag(value)) if value else 0

    def _sum(self, left: Value, right: Value) -> Value:
        if isinstance(left, Fraction) and isinstance(right, Fraction):
            return left + right
        if left and right and abs(self._magnitude(left) - self._magnitude(right)) > MAX_GAP_BITS:
            raise NoValueError  # rounding would hide the smaller one
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
        # Bounded before it is computed: what would come out has about this many bits.
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
        numerator, index = exponent.numerator, exponent.denominator
        if index > MAX_MAGNITUDE:
            return self._ctx.power(as_mp(base), as_mp(exponent))
        if isinstance(base, Fraction) and index == 2 and base > 0:
            above, below = math.isqrt(base.numerator), math.isqrt(base.denominator)
            if above * above == base.numerator and below * below == base.denominator:
                return self._power(Fraction(above, below), Fraction(numerator))
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

    def _binomial(self, above: Value, below: Value) -> Value:
        if max(abs(above), abs(below)) > MAX_FACTORIAL:
            raise NoValueError
        if isinstance(above, Fraction) and isinstance(below, Fraction) and above.denominator == below.denominator == 1:
            if above < 0 or below < 0:
                raise NoValueError
            return Fraction(math.comb(int(above), int(below)))
        self.steps += 3 * GAMMA_STEPS
        return self._ctx.binomial(as_mp(above), as_mp(below))

    def _function(self, node: Node) -> Value:
        arguments = [self.value(part) for part in node.parts]
        value, ctx = arguments[0], self._ctx
        if node.name == "abs":
            return abs(value)
        if node.name in ("floor", "ceil"):
            return self._whole(value, node.name)
        if node.name == "sqrt":
            return self._power(value, Fraction(1, 2))
        if node.name == "log":
            return self._quotient(self._logarithm(arguments[0]), self._logarithm(arguments[1]))
        if node.name == "ln":
            return self._logarithm(value)
        if self._magnitude(value) > (14 if node.name in ("exp", "sinh", "cosh", "tanh") else MAX_ARGUMENT_BITS):
            raise NoValueError
        if node.name in ("cot", "sec", "csc", "tan"):
            sine, cosine = ctx.sin(as_mp(value)), ctx.cos(as_mp(value))
            above, below = {
                "tan": (sine, cosine),
                "cot": (cosine, sine),
                "sec": (ctx.mpf(1), cosine),
                "csc": (ctx.mpf(1), sine),
            }[node.name]
            return self._quotient(above, below)
        name = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}.get(node.name, node.name)
        if name not in ("sin", "cos"):
            return getattr(ctx, name)(as_mp(value))
        # Near a zero the result is a difference of what is near 1: its rounding error is that of the argument.
        size, result = max(abs(as_mp(value)), ctx.one), getattr(ctx, name)(as_mp(value))
        self.scale = max(self.scale, size)
        return result if abs(result) > size * RELATIVE_ERROR else ctx.zero

    def _logarithm(self, value: Value) -> Value:
        if self._is_zero(value):
            raise NoValueError
        return Fraction(0) if value == 1 else self._ctx.ln(as_mp(value))

    def _whole(self, value: Value, name: str) -> Value:
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
