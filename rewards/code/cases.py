"""The tests of a programming task in the forms that data sets use, and the comparison of outputs.

| column | content | used by |
|---|---|---|
| `tests` | a list of `{"input", "output"}`, or of assert statements; or text with assert statements | |
| `test_list`, with `test_setup_code` or `test_imports` | assert statements | MBPP |
| `test`, `entry_point` | text that defines `check(candidate)` | HumanEval |
| `input_output` | `{"inputs", "outputs"}`, with `fn_name` where functions are called | APPS, TACO |

Each may be JSON text instead of lists and mappings. Each assert statement is one test, independent of the others.
The text in `test` is a single test, whatever it asserts.
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
# JSON has no tuples, and some data sets wrap a result in a list of length one.
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
    """The tests of one task: either cases or statements."""

    cases: tuple[tuple[str, str], ...] = ()
    """Pairs of input and expected output."""
    statements: tuple[str, ...] = ()
    """Python texts that raise if the program is wrong."""
    setup: str = ""
    """Python text that runs before the statements."""
    names: tuple[str, ...] = ()
    """Names in the statements that may refer to the program."""

    def __len__(self) -> int:
        return len(self.cases) or len(self.statements)

    def at_most(self, num: int) -> "Tests":
        """At most `num` tests, evenly spread, because the first ones are often the easy ones."""
        return replace(self, cases=_spread(self.cases, num), statements=_spread(self.statements, num))


def read_tests(
    tests: Any = None,
    test_list: Any = None,
    test: Any = None,
    entry_point: Any = None,
    input_output: Any = None,
    setup: str = "",
) -> Tests:
    """The tests of a row, from the first of these columns that has any.

    Raises Unscorable if there are none, or if they cannot be used.
    """
    for given in (tests, test_list, input_output):
        value = _parsed(given)
        if isinstance(value, str) and value.strip():
            return _from_text(value, setup)
        if isinstance(value, Mapping):
            return _from_mapping(value, setup)
        if isinstance(value, Sequence) and value and not isinstance(value, str):
            return _from_list(value, setup)
    if isinstance(test, str) and test.strip():
        name = _identifier(entry_point)
        return _from_statements([f"{test}\ncheck({name})\n"], setup, {name})
    raise Unscorable("the row has no tests")


def same_output(expected: str, given: str, tolerance: float = 0.0) -> bool:
    """Whether two outputs have the same words on the same lines, ignoring empty lines and spacing between words.

    tolerance: how far a number may be from the expected one, absolute or relative; 0 compares numbers as text.
    """
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
    """The value of JSON text; other values unchanged."""
    if not isinstance(given, str):
        return given
    if len(given) > MAX_BYTES:
        raise Unscorable(f"the row's tests are longer than {MAX_BYTES} characters")
    if given.lstrip()[:1] not in ("[", "{"):
        return given
    try:
        return json.loads(given)
    except (ValueError, RecursionError):
        raise Unscorable("the row's tests are not valid JSON") from None


def _from_list(given: Sequence[Any], setup: str) -> Tests:
    if all(isinstance(each, str) for each in given):
        return _from_statements(list(given), setup)
    if all(isinstance(each, Mapping) and {"input", "output"} <= set(each) for each in given):
        return Tests(cases=tuple((_text(each["input"]), _text(each["output"])) for each in given))
    raise Unscorable("the row's tests are neither assert statements nor pairs of input and output")


def _from_mapping(given: Mapping[str, Any], setup: str) -> Tests:
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
    return _from_statements(calls, setup + _CALL.format(name=name), {name, "Solution"})


def _from_statements(given: Sequence[str], setup: str, names: set[str] = frozenset()) -> Tests:  # type: ignore[assignment]
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
    # Built-in functions and standard modules are the test's own, or the program could substitute them.
    modules &= sys.stdlib_module_names
    wanted = {name for name in used - modules if not (name.startswith("__") or hasattr(builtins, name))} | names
    lines = [f"import {name}" for name in sorted(modules)]
    # The task may be to write a function that is built into Python; then the tests call nothing else.
    return Tests((), tuple(given), "\n".join([*lines, setup]), tuple(sorted(wanted or called)))


def _from_text(text: str, setup: str) -> Tests:
    """Tests from Python text. Imports, functions and classes at the start belong to the setup.

    If only assert statements follow, each is one test. Otherwise the text is a script, in which each line may need the
    previous ones, and counts as one test.
    """
    statements = _tree(text).body
    if not any(isinstance(node, ast.Assert) for statement in statements for node in ast.walk(statement)):
        raise Unscorable("the row's tests contain no assert statement")
    num = next(index for index, each in enumerate(statements + [ast.Pass()]) if not isinstance(each, _DEFINITIONS))
    tests = [ast.unparse(each) for each in statements[num:]]
    if not tests or not all(isinstance(each, ast.Assert) for each in statements[num:]):
        return _from_statements([text], setup)
    return _from_statements(tests, "\n".join([setup, *map(ast.unparse, statements[:num])]))


def _tree(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise Unscorable("the row's tests are not valid Python") from None


def _identifier(name: Any) -> str:
    if not isinstance(name, str) or not name.isidentifier():
        raise Unscorable("the row's tests do not name the function that they call")
    return name


def _text(value: Any) -> str:
    """The text of a value, which may be a list of lines."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and all(isinstance(each, str) for each in value):
        return "\n".join(value)
    if isinstance(value, (int, float)):
        return str(value)
    raise Unscorable("an input or output of the row's tests is not text")


def _spread(given: tuple[Any, ...], num: int) -> tuple[Any, ...]:
    return given if len(given) <= num else tuple(given[index * len(given) // num] for index in range(num))
