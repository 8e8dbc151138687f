"""Tests and program in two processes: what they may exchange, and that no program can forge its verdict."""

import collections
import decimal
import fractions
import json
import textwrap
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rewards.sandbox_helpers import SEARCH
from volley.rewards.sandbox.box import Sandbox
from volley.rewards.sandbox.types import Limits
from volley.rewards.sandbox.values import LostError, decode, encode

IMPORT = "import volley.rewards.sandbox."


def outcome(
    sandbox: Sandbox, program: str, tests: list[str], names: tuple[str, ...] = ("f",), case_s: float = 0.3, **job: Any
) -> str:
    job = {"setup": "", "tests": tests, "names": names} | job
    return sandbox.run_tests(textwrap.dedent(program).encode(), job, Limits(case_s=case_s, all_s=4.0))


def test_tests_and_program_are_two_processes(sandbox: Sandbox) -> None:
    """The program looks for the expected values, the tests and the result: none of them is in its process."""
    program = SEARCH + "\ndef f(x, backwards): return any(backwards in each for each in everything())"
    tests = ["assert f(1, '828172') is False, 271828", "assert f('271828', '828172') is True"]
    assert outcome(sandbox, program, tests, case_s=2.0) == "11"


# Answers every question with yes.
LIAR = """
class Liar:
    def __init__(self, *_): pass
    def __call__(self, *_): return self
    def __getattr__(self, name): return lambda *_: True
    def __iter__(self): return iter(())
    def yes(self, *_): return True
    def zero(self, *_): return 0
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __bool__ = __instancecheck__ = yes
    __sub__ = __rsub__ = __abs__ = __round__ = __mod__ = __xor__ = __rxor__ = __len__ = __index__ = __int__ = zero
    __hash__ = lambda self: hash(4)
"""


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "def f(x): raise SystemExit(0)",
        "import os\ndef f(x): os._exit(0)",
        "import os, signal\ndef f(x): os.kill(-1, signal.SIGKILL)",
        "import os, signal\nos.kill(-1, signal.SIGKILL)",
        "class E:\n def __eq__(self, other): return True\ndef f(x): return E()",
        "class E(int):\n def __eq__(self, other): return True\n __hash__ = None\ndef f(x): return E(5)",
        "class E(list):\n def __eq__(self, other): return True\ndef f(x): return E()",
        "import builtins\nbuiltins.AssertionError = type('E', (Exception,), {'__new__': print})\ndef f(x): return 5",
        "import builtins\nbuiltins.exec = builtins.compile = lambda *a: None\ndef f(x): return 5",
        "import os\ndef f(x):\n for n in range(64):\n  try: os.write(n, b'1')\n  except OSError: pass\n return 5",
        "import os\nfor n in range(64):\n try: os.write(n, b'11111111')\n except OSError: pass\ndef f(x): return 5",
        LIAR + "def f(x): return Liar()",
        LIAR + "f = Liar",
        LIAR + "f = Liar()",
        LIAR + "def f(x): return [Liar()]",
        "def f(x): raise AssertionError",
        "def f(x): raise StopIteration",
        "def f(x): return NotImplemented",
        "def f(x): return f",
        "f = 5",
        "import unittest.mock\nf = unittest.mock.MagicMock()",
        "import unittest.mock\nf = unittest.mock.ANY",
        "def f(x): return float('nan')",
        "def f(x):\n while True: pass",
        "def f(x): return [[0] * 10**6] * 100",
        "def f(x):\n a = []\n a.append(a)\n return a",
        "def f(x):\n a = 0\n for n in range(10**5): a = [a]\n return a",
        IMPORT + "values as v\nv.send = lambda c, m: c.sendall(b'1' * 10**6)\ndef f(x): return 5",
        IMPORT + "program as p\np.send = lambda c, m: c.sendall(b'\\0\\0\\0\\2{}')\ndef f(x): return 5",
        IMPORT + "program as p\ns = p.send\np.send = lambda c, m: s(c, ['value', ['object', 1, 2], {}])\n"
        "def f(x): return 5",
        IMPORT + "program as p\ns = p.send\np.send = lambda c, m: s(c, ['error', 'SystemExit', ''])\n"
        "def f(x): return 5",
        IMPORT + "program as p\ns = p.send\np.send = lambda c, m: s(c, ['error', 'print', ''])\ndef f(x): return 5",
        IMPORT + "program as p\ns = p.send\n"
        "p.send = lambda c, m: s(c, ['names', {'f': 4, 'int': 5, '__builtins__': {}}] if m[0] == 'names' else m)",
        IMPORT + "program as p\ns = p.send\n"
        "p.send = lambda c, m: s(c, m if m[0] == 'names' else ['value', 5, {'0': ['list', 4]}])\ndef f(x): return 5",
        IMPORT + "harness as t\nt.FAILED = b'1'\nt.run = None\ndef f(x): return 5",
    ],
)
def test_no_verdict_can_be_forged(sandbox: Sandbox, program: str) -> None:
    tests = ["assert f(2) == 4", "assert f(3) == 9 and int('4') == 4", "assert all(map(lambda x: f(x) == 16, [4]))"]
    tests += ["for x in map(f, [5]):\n    assert x == 25\n    break\nelse:\n    assert False"]
    tests += ["try:\n    assert f(6) == 36\nexcept TypeError:\n    assert False"]
    tests += ["assert abs(f(2) - 4) < 1e-6", "assert 4 in f(2)", "assert f(2) in (4,)", "assert f(2) in {4: 0}"]
    tests += ["assert f(2).startswith('4')", "assert f(2).issubset({4}) and list(f(2))", "assert round(f(2), 2) == 4"]
    tests += ["assert isinstance(f(2), str)", "assert f(2) > 3 and f(2) < 5", "assert not f(2) != 4"]
    for test in tests:
        assert "1" not in outcome(sandbox, program, [test])


def test_operations_of_tests_on_a_program(sandbox: Sandbox) -> None:
    program = """
        import collections, decimal, fractions
        class Stack:
            limit = 3
            def __init__(self, items=()): self.items = list(items)
            def push(self, item): self.items.append(item)
            def __len__(self): return len(self.items)
            def __getitem__(self, index): return self.items[index]
            def __eq__(self, other): return self.items == other.items
            def __lt__(self, other): return self.items < other.items
            def __add__(self, other): return Stack(self.items + other.items)
            def __repr__(self): return f"Stack({self.items})"
        class Own(ValueError): pass
        def f(x, *, times=1): return x * times
        def sort(values): values.sort()
        def grow(values): values["new"] = {1, 2}
        def count():
            yield from range(3)
        def fail(): raise KeyError("x")
        def fail_too(): raise Own
        def same(x): return x
        def point(): return collections.namedtuple("P", "x y")(1, 2)
        def top(stack): return stack.items[-1]
    """
    tests = [
        "assert f(2, times=3) == 6",
        "assert f('a', times=2) == 'aa'",
        "x = [3, 1, 2]\nsort(x)\nassert x == [1, 2, 3]",
        "x = {}\ngrow(x)\nassert x == {'new': {1, 2}}",
        "assert list(count()) == [0, 1, 2] and sum(count()) == 3 and next(count()) == 0",
        "s = Stack()\ns.push(4)\nassert len(s) == 1 and s[0] == 4 and 4 in s and 5 not in s and s.items == [4]",
        "assert Stack([1]) == Stack([1]) and Stack([1]) != Stack([2]) and (Stack([1]) + Stack([2])).items == [1, 2]",
        "assert Stack([1]) != [1] and sorted([Stack([2]), Stack([1])])[0].items == [1] and {Stack()} != {1}",
        "assert str(Stack([1])) == 'Stack([1])' and Stack.limit == 3 and top(Stack([1, 2])) == 2",
        "s = Stack()\ns.limit = 9\nassert s.limit == 9 and s is same(s)",
        "try:\n    fail()\n    assert False\nexcept KeyError:\n    pass",
        "try:\n    fail_too()\nexcept Exception:\n    pass\nelse:\n    assert False",
        "import fractions, decimal, collections\n"
        "for x in (None, True, 1.5, float('inf'), 2**200, -2**63, 'ü\\ud800', b'a', 1j, (1,), {1: [2]}, {(1, 2): 3}, "
        "frozenset([1]), range(3), fractions.Fraction(1, 3), decimal.Decimal('1.10'), collections.deque([1])):\n"
        "    assert same(x) == x and type(same(x)) is type(x), x",
        "assert point() == (1, 2)",
        "import math\nassert math.isclose(f(0.5), 0.5)",
    ]
    names = ("f", "sort", "grow", "count", "Stack", "fail", "fail_too", "same", "point", "top")
    assert outcome(sandbox, program, tests, names) == "1" * len(tests)


def test_a_test_may_catch_any_exception_but_not_the_end_of_the_program(sandbox: Sandbox) -> None:
    test = "try:\n    f()\nexcept:\n    pass"
    for program in ("import os\ndef f(): os._exit(0)", "def f():\n while True: pass"):
        assert outcome(sandbox, program, [test, test]) == "0"
    assert outcome(sandbox, "def f(): raise ValueError", [test, test]) == "11"


def test_output_of_a_test_is_not_a_verdict(sandbox: Sandbox) -> None:
    tests = [
        "import os\nprint(11, flush=True)\nos.write(1, b'11')\nassert f(1) == 2",
        "print(0, flush=True)\nassert f(1) == 1",
    ]
    assert outcome(sandbox, "def f(x): return x", tests) == "01"


def test_values_that_are_not_plain_are_unusable(sandbox: Sandbox) -> None:
    assert outcome(sandbox, "def f(x): return 1", ["f(1)", "f(lambda: 1)"]) == "1?"
    assert outcome(sandbox, "def f(x): return 1", ["f(1)"], setup="f(object())") == "?"


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers().map(lambda number: number**40)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.fractions(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.text()), inner)
        | st.frozensets(st.integers() | st.text())
        | st.sets(st.booleans() | st.binary())
    ),
    max_leaves=20,
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["list", "dict", "set", "int", "range"])
    | st.sampled_from(["complex", "fraction", "decimal", "bytes", "object", "1e9"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def refuse(value: Any) -> Any:
    raise LostError(str(value))


@settings(max_examples=300, deadline=1000)
@given(value=PLAIN)
def test_plain_values_arrive_unchanged(value: Any) -> None:
    arrived = decode(json.loads(json.dumps(encode(value, refuse))), refuse)
    assert arrived == value
    assert type(arrived) is type(value)


@settings(max_examples=500, deadline=1000)
@given(form=JSON)
def test_values_from_a_program_are_plain_or_refused(form: Any) -> None:
    try:
        value = decode(form, refuse)
    except LostError:
        return
    plain = (type(None), bool, int, float, str, list, tuple, set, frozenset, dict, bytes, bytearray, complex, range)
    assert isinstance(value, (*plain, fractions.Fraction, decimal.Decimal, collections.deque))
