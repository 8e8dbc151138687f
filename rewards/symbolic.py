"""Equality of formulas, by math-verify behind a gate.

What passes the gate is short, shallow, made of known LaTeX commands and of numbers whose powers and factorials stay
small; all of this is checked on the text, before any symbolic object exists. Only math-verify's LaTeX grammar sees the
text: its reader of plain expressions, which ends in `parse_expr` and so in `eval`, is never used. How long a comparison
takes is not bounded here; whoever calls this with a model's text does so in a process that can be killed.
"""

import logging
import math
import re
from functools import lru_cache
from typing import Any

from rewards.exact import parse_exact

MAX_CHARS = 200
MAX_NESTING = 8
MAX_DIGITS = 30
MAX_POWER_DIGITS = 3
MAX_POWER = 10**5
MAX_FACTORIAL_DIGITS = 3
DECIMALS = 6
PRECISION = 1e-12
TINY = 1e-40

_KNOWN = """
frac sqrt pi e ln log exp sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh infty pm mp cup cap in setminus
emptyset varnothing mathbb le leq ge geq lt gt ne neq begin end binom alpha beta gamma delta epsilon varepsilon theta
lambda mu nu rho sigma tau phi varphi omega Delta Omega lfloor rfloor lceil rceil lbrace rbrace { } % |
"""
COMMANDS = frozenset([*_KNOWN.split(), "\\"])
ENVIRONMENTS = frozenset(["matrix", "pmatrix", "bmatrix", "vmatrix", "array"])
_COMMAND = re.compile(r"\\([A-Za-z]+|[^A-Za-z])")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{([^}]*)\}")
_ALLOWED = re.compile(r"[A-Za-z0-9\s\\{}()\[\].,;:+\-*/^_=<>!|%&']*")
_VARIABLE = re.compile(r"[a-df-hj-zA-Z]")
_WORD = re.compile(r"[A-Za-z]{4,}")
_LARGE_NUMBER = re.compile(rf"[0-9]{{{MAX_DIGITS + 1},}}|[0-9][eE][+-]?[0-9]{{3,}}")
_LARGE_FACTORIAL = re.compile(rf"[0-9]{{{MAX_FACTORIAL_DIGITS + 1},}}\s*!|!\s*!|[)}}\]]\s*!")
_POWER = re.compile(r"\s*\^|\\binom\s*(?:\{[^{}]*\})?")
_UNEVALUATED = re.compile(r"\\frac\s*\{\s*d\s*[A-Za-z]?\s*\}\s*\{\s*d\s*[A-Za-z]|\|\s*[_^]")


def is_admitted(text: str) -> bool:
    """Whether a normal form may become a symbolic object."""
    if not 0 < len(text) <= MAX_CHARS or not _ALLOWED.fullmatch(text):
        return False
    if not COMMANDS.issuperset(_COMMAND.findall(text)):
        return False
    if not ENVIRONMENTS.issuperset(_ENVIRONMENT.findall(text)):
        return False
    letters = _COMMAND.sub(" ", _ENVIRONMENT.sub(" ", text))
    if _WORD.search(letters) or _LARGE_NUMBER.search(text) or _LARGE_FACTORIAL.search(text):
        return False
    return not _UNEVALUATED.search(text) and _is_balanced(text) and _powers_are_small(text)


def _is_balanced(text: str) -> bool:
    """Braces match, and nothing nests deeply. Round and square brackets may be mixed: (0, 1] is an interval."""
    depth = braces = 0
    for mark in _COMMAND.sub(" ", text):
        if mark in "({[":
            depth += 1
        elif mark in ")}]":
            depth -= 1
        braces += (mark == "{") - (mark == "}")
        if depth < 0 or braces < 0 or depth > MAX_NESTING:
            return False
    return depth == 0 and braces == 0


def _powers_are_small(text: str) -> bool:
    """Whether no power can become large: numbers in exponents and binomials are short, what they multiply to over
    nested powers is bounded, and no numeric power stands in another's exponent."""
    total = 1
    for power in _POWER.finditer(text):
        operand = _operand(text, power.end())
        numbers = [int(number) for number in re.findall("[0-9]+", operand)]
        if max(numbers, default=0) >= 10**MAX_POWER_DIGITS or "!" in operand:
            return False
        if not re.match(r"[A-Za-z]", text[power.start() - 1 : power.start()]):
            total *= math.prod(number for number in numbers if number)
        if operand.count("^") > 1 or re.search(r"[0-9]\s*\^", operand):
            return False
        if "^" in operand and not re.search("[A-Za-z]", _COMMAND.sub("", operand)):
            return False
        if text[power.end() :].lstrip()[len(operand) :].lstrip().startswith("^"):
            return False
    return total <= MAX_POWER


def _operand(text: str, place: int) -> str:
    """What stands in an exponent: a braced or bracketed group, a command, or a run of digits or letters."""
    text = text[place:].lstrip()
    if text[:1] in ("{", "("):
        depth = 0
        for index, mark in enumerate(text):
            depth += (mark in "{(") - (mark in "})")
            if depth == 0:
                return text[: index + 1]
    match = re.match(r"-?(?:\\[A-Za-z]+|[0-9]+|.)?", text)
    return match[0] if match else ""


def has_variables(text: str) -> bool:
    """Whether letters other than e and i stand in it, so that it cannot be a number."""
    return bool(_VARIABLE.search(_COMMAND.sub(" ", text)))


def is_readable(text: str) -> bool:
    """Whether a normal form is a formula."""
    return is_admitted(text) and _parse(text) is not None


@lru_cache(4096)
def are_equal(gold: str, given: str) -> bool:
    """Whether two normal forms are the same formula, set, interval, tuple, matrix or relation. A decimal equals a
    formula only if that is its exact value, or if the gold answer is the decimal, to six places."""
    if not (is_admitted(gold) and is_admitted(given)):
        return False
    one, other = _parse(gold), _parse(given)
    if one is None or other is None or gold == given:
        return one is not None and gold == given
    from math_verify import verify
    from sympy import Rational

    number = parse_exact(given)
    if number is not None and not (number.percent or number.unit or "." in gold):
        other = Rational(number.value.numerator, number.value.denominator)
    if not verify(one, other, float_rounding=DECIMALS, timeout_seconds=None) or _is_undefined(other):
        return False
    return "." in gold or not _differ(one, other)


def _is_undefined(formula: Any) -> bool:
    """Whether some part of it is a number that does not exist, such as log(0): sympy simplifies pi - |log(0)| to 0."""
    from sympy import Expr, nan, oo, preorder_traversal, zoo

    for part in preorder_traversal(formula):
        if isinstance(part, Expr) and part.is_number and not part.is_Atom:
            try:
                value = part.evalf(5)
            except (TypeError, ValueError, ArithmeticError):
                return True
            if value.has(nan, zoo, oo, -oo):
                return True
    return False


def _differ(one: Any, other: Any) -> bool:
    """Whether two numbers that rounding made equal are different ones, such as pi / 2^98 and pi / 2^99."""
    try:
        if not (one.is_number and other.is_number):
            return False
        first, second = one.evalf(30), other.evalf(30)
        return bool(abs(first - second) > PRECISION * max(abs(first), abs(second)) + TINY)
    except (AttributeError, TypeError, ValueError):
        return False


@lru_cache(512)
def _parse(text: str) -> Any:
    """The symbolic object of an admitted text, None if the grammar does not know it."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own, signal-based time-outs are off
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    # Units are ours to judge: its own list takes the "t" off "2t".
    spelling = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    found = parse(
        f"${text}$",
        [LatexExtractionConfig(normalization_config=spelling)],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )
    return found[0] if len(found) == 1 else None


def warm_up() -> None:
    """Import and use everything once (half a second), so that no response pays for it."""
    are_equal(r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}")
