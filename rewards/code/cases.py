"""The tests of a programming task, in the forms that data sets have them, and when an output is the right one.

| column | holds | known from |
|---|---|---|
| `tests` | a list of `{"input", "output"}`, or of assert statements; or text with assert statements | |
| `test_list`, with `test_setup_code` or `test_imports` | assert statements | MBPP |
| `test`, `entry_point` | text that defines `check(candidate)` | HumanEval |
| `input_output` | `{"inputs", "outputs"}`, with `fn_name` where functions are called | APPS, TACO |

Each may be JSON text instead of lists and mappings. Each assert statement is one test, and does not need the others;
`test` is one, whatever it asserts.
"""

import ast
import builtins
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from volley.rewards.item import Unscorable

MAX_BYTES = 16 << 20
MAX_TEST_CHARACTERS = 1 << 20
MAX_NUMBER = 400
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
# JSON has no tuples, and some data sets put a result into a list of one.
_CALL = """
def call(*arguments):
    try:
        function = getattr(Solution(), {name!r})
    except NameError:
        function = {name}
    return plain(function(*arguments))
def plain(value):
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value
"""


@dataclass(frozen=True)
class Tests:
    """Either cases, pairs of input and expected output; or statements, Python text that raises where the program is
    wrong, after `setup`. names: what the statements may mean by the program."""

    cases: tuple[tuple[str, str], ...] = ()
    statements: tuple[str, ...] = ()
    setup: str = ""
    names: tuple[str, ...] = ()

    def at_most(self, num: int) -> "Tests":
        """These tests, or `num` of them, evenly spread: the first ones alone are often the easy ones."""
        return replace(self, cases=_spread(self.cases, num), statements=_spread(self.statements, num))


def read_tests(
    tests: Any = None,
    test_list: Any = None,
    test: Any = None,
    entry_point: Any = None,
    input_output: Any = None,
    setup: str = "",
) -> Tests:
    """The tests of a row, from the first of these columns that holds any. Raises Unscorable where none does, or where
    they cannot be used."""
    for given in (tests, test_list, input_output):
        value = _parsed(given)
        if isinstance(value, str) and value.strip():
            return _text_of_tests(value, setup)
        if isinstance(value, Mapping):
            return _mapping(value, setup)
        if isinstance(value, Sequence) and value and not isinstance(value, str):
            return _list(value, setup)
    if isinstance(test, str) and test.strip():
        name = _identifier(entry_point)
        return _statements([f"{test}\ncheck({name})\n"], setup, {name})
    raise Unscorable("the row has no tests")


def same_output(expected: str, given: str, tolerance: float = 0.0) -> bool:
    """Whether two outputs have the same words on the same lines; empty lines and the spaces between words do not count.
    tolerance: how far a number may be from the expected one, absolutely or as a share of it; 0 for as it is spelt."""
    lines = [[line.split() for line in text.split("\n") if line.strip()] for text in (expected, given)]
    if not tolerance:
        return lines[0] == lines[1]
    return len(lines[0]) == len(lines[1]) and all(
        len(one) == len(other) and all(_close(*pair, tolerance) for pair in zip(one, other, strict=True))
        for one, other in zip(*lines, strict=True)
    )


def _close(expected: str, given: str, tolerance: float) -> bool:
    if expected == given:
        return True
    if max(len(expected), len(given)) > MAX_NUMBER or not (_NUMBER.fullmatch(expected) and _NUMBER.fullmatch(given)):
        return False
    gold = float(expected)
    return abs(float(given) - gold) <= tolerance * max(1.0, abs(gold))


def _parsed(given: Any) -> Any:
    """JSON text as what it says, other text as it is."""
    if not isinstance(given, str):
        return given
    if len(given) > MAX_BYTES:
        raise Unscorable(f"the row's tests are longer than {MAX_BYTES} characters")
    if given.lstrip()[:1] not in ("[", "{"):
        return given
    try:
        return json.loads(given)
    except (ValueError, RecursionError):
        raise Unscorable("the row's tests are no JSON that can be read") from None


def _list(given: Sequence[Any], setup: str) -> Tests:
    if all(isinstance(each, str) for each in given):
        return _statements(list(given), setup)
    if all(isinstance(each, Mapping) and {"input", "output"} <= set(each) for each in given):
        return Tests(cases=tuple((_text(each["input"]), _text(each["output"])) for each in given))
    raise Unscorable("the row's tests are neither assert statements nor pairs of input and output")


def _mapping(given: Mapping[str, Any], setup: str) -> Tests:
    inputs, outputs = given.get("inputs"), given.get("outputs")
    if not (isinstance(inputs, Sequence) and isinstance(outputs, Sequence) and 0 < len(inputs) == len(outputs)):
        raise Unscorable("the row's tests must have as many 'outputs' as 'inputs', and at least one")
    if not given.get("fn_name"):
        return Tests(cases=tuple((_text(one), _text(other)) for one, other in zip(inputs, outputs, strict=True)))
    name = _identifier(given["fn_name"])
    calls = []
    for arguments, result in zip(inputs, outputs, strict=True):
        if not isinstance(arguments, list):
            raise Unscorable("the row's tests call a function, so each of 'inputs' must be a list")
        right = (result, *result[:1]) if isinstance(result, list) else (result,)
        calls.append(f"assert call(*{arguments!r}) in {right!r}")
    return _statements(calls, setup + _CALL.format(name=name), {name, "Solution"})


def _statements(given: Sequence[str], setup: str, names: set[str] = frozenset()) -> Tests:  # type: ignore[assignment]
    if sum(map(len, given)) > MAX_TEST_CHARACTERS:
        raise Unscorable(f"the row's tests are longer than {MAX_TEST_CHARACTERS} characters")
    used, modules, called = set(names), set(), set()
    for text in (setup, *given):
        for node in ast.walk(_tree(text)):
            if isinstance(node, ast.Name):
                used.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                modules.add(node.value.id)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                called.add(node.func.id)
    # Python's own functions and modules are the tests' own, or the program could lend them false ones.
    modules &= sys.stdlib_module_names
    wanted = {name for name in used - modules if not (name.startswith("__") or hasattr(builtins, name))} | names
    lines = [f"import {name}" for name in sorted(modules)]
    # A task may be to write a function that Python has; then the tests call nothing else.
    return Tests((), tuple(given), "\n".join([*lines, setup]), tuple(sorted(wanted or called)))


def _text_of_tests(text: str, setup: str) -> Tests:
    """Imports, functions and classes at the start belong to the set-up. What follows is one test for each assert
    statement, if it is nothing else; a script, of which each line may need those before it, is one test."""
    statements = _tree(text).body
    if not any(isinstance(node, ast.Assert) for statement in statements for node in ast.walk(statement)):
        raise Unscorable("the row's tests hold no assert statement")
    num = next(index for index, each in enumerate(statements + [ast.Pass()]) if not isinstance(each, _DEFINITIONS))
    tests = [ast.unparse(each) for each in statements[num:]]
    if not tests or not all(isinstance(each, ast.Assert) for each in statements[num:]):
        return _statements([text], setup)
    return _statements(tests, "\n".join([setup, *map(ast.unparse, statements[:num])]))


def _tree(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise Unscorable("the row's tests are no Python that can be read") from None


def _identifier(name: Any) -> str:
    if not isinstance(name, str) or not name.isidentifier():
        raise Unscorable("the row's tests do not name the function that they call")
    return name


def _text(value: Any) -> str:
    """Text, or a list of lines."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and all(isinstance(each, str) for each in value):
        return "\n".join(value)
    if isinstance(value, (int, float)):
        return str(value)
    raise Unscorable("an input or output of the row's tests is no text")


def _spread(given: tuple[Any, ...], num: int) -> tuple[Any, ...]:
    return given if len(given) <= num else tuple(given[index * len(given) // num] for index in range(num))
