"""Answers that are programs: the forms of tests, extraction, partial credit, and the reward in the scorer."""

import asyncio
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rewards.sandbox_helpers import descendants, is_alive, within
from volley.rewards.code import verifier as code
from volley.rewards.code.cases import read_tests, same_output
from volley.rewards.code.verifier import check_budgets, extract, grade, reward, verify
from volley.rewards.config import RewardConfig, ScorerConfig
from volley.rewards.item import Item, Unscorable
from volley.rewards.rubric.rubric import Rubric
from volley.rewards.rubric.signature import check_built_in
from volley.rewards.sandbox.box import shared
from volley.rewards.sandbox.types import Limits
from volley.rewards.scoring.preflight import check_rewards
from volley.rewards.scoring.scorer import Scorer
from volley.rollout.errors import ConfigError, RewardError
from volley.rollout.types import Completion, Prompt, Score, as_token_ids

SQUARE = "def f(x):\n    return x * x\n"
ASSERTS = ["assert f(2) == 4", "assert f(3) == 9", "assert f(-1) == 1", "assert f(0) == 0"]
SUM = "print(sum(map(int, input().split())))"
CASES = [{"input": "1 2\n", "output": "3\n"}, {"input": "10 -4", "output": "6"}]


@pytest.fixture(scope="module", autouse=True)
def _sandbox() -> Iterator[None]:
    try:
        code.warm_up()
    except RewardError as error:
        pytest.skip(f"no sandbox on this system: {error}")
    yield
    shared().close()


def fenced(program: str) -> str:
    return f"Let us see.\n```python\n{program}\n```\nThat is it."


def value(program: str, **row: Any) -> float:
    return reward("", fenced(program), "", **row)


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("```python\na\n```", "a\n"),
        ("text\n```py\na\n```\ntext\n```Python\nb\nc\n```\nend", "b\nc\n"),
        ("```python3\na\n```\n```\noutput\n```", "a\n"),
        ("```\na\n```\n```text\nno\n```", "a\n"),
        ("```\na\n```\n```\nb\n```", "b\n"),
        ("~~~python\na\n```\n~~~", "a\n```\n"),
        ("````python\n```\na\n````", "```\na\n"),
        ("1. first\n   ```python\n   a\n   ```", "a\n"),
        ("<think>```python\na\n```</think>```python\nb\n```", "b\n"),
        ("<think>\n```python\na\n</think>\n```python\nb\n```", "b\n"),
        ("<think>\n```python\na\n```\n", None),
        ("<think>a</think>\n```python\na\n```\n<think>", None),
        ("```python\na\n```\n```python\nb = ", None),
        ("```python\na", None),
        ("```java\na\n```", None),
        ("x = 1", None),
        ("", None),
        ("```python\n" + "#" * 70_000 + "\n```", None),
        ("```python\n" * 20_000, None),
        ("`" * 200_000, None),
        ("```" + "x" * 1_000_000 + "`", None),
        ("```" + " " * 1_000_000 + "`", None),
        ("`" * 1_000_000 + "x`", None),
        ("   ```x " * 100_000, None),
    ],
)
def test_extraction(response: str, program: str | None) -> None:
    assert extract(response) == program


@settings(max_examples=300, deadline=1000)
@given(st.text(alphabet="`~ab \n", max_size=60))
def test_extracted_programs_are_fenced(text: str) -> None:
    program = extract(text)
    assert program is None or "```" in text or "~~~" in text
    last = extract(f"{text}\n\n```python\nlast\n```")
    assert last is None or last.endswith("last\n")


def test_thinking_opened_by_the_chat_template() -> None:
    block = "```python\nprint(3)\n```"
    assert reward("<think>", f"{block}</think>", "", tests=CASES) == 0.0
    assert reward("<think>", f"x</think>{block}", "", tests=[{"input": "", "output": "3"}]) == 1.0


@pytest.mark.parametrize(
    "row",
    [
        {"tests": ASSERTS},
        {"tests": json.dumps(ASSERTS)},
        {"tests": "\n".join(ASSERTS)},
        {"tests": "import math\ndef close(a, b): return math.isclose(a, b)\nassert close(f(2), 4)\nassert f(3) == 9"},
        {"tests": "for n in range(5):\n    assert f(n) == n ** 2"},
        {"test_list": ASSERTS, "test_setup_code": "", "tests": None},
        {"test_list": ["assert f(three) == 9"], "test_setup_code": "three = 3"},
        {"test_list": ["assert isclose(f(3), 9.0)"], "test_imports": ["import math", "from math import isclose"]},
        {"test": "def check(candidate):\n    assert candidate(2) == 4\n    assert f(3) == 9\n", "entry_point": "f"},
        {"input_output": {"inputs": [[2], [3]], "outputs": [4, 9], "fn_name": "f"}},
        {"input_output": json.dumps({"inputs": [[2], [3]], "outputs": [[4], [9]], "fn_name": "f"})},
        {"tests": ["import math\nassert math.sqrt(f(3)) == 3"]},
    ],
)
def test_forms_of_function_tests(row: dict[str, Any]) -> None:
    assert value(SQUARE, **row) == 1.0
    assert value("def f(x): return 4", **row) == 0.0
    assert value("def g(x): return x * x", **row) == 0.0
    assert value("def f(x): return x *", **row) == 0.0
    assert value(SQUARE + "raise SystemExit", **row) == 0.0


@pytest.mark.parametrize(
    "row",
    [
        {"tests": CASES},
        {"tests": json.dumps(CASES)},
        {"input_output": json.dumps({"inputs": ["1 2\n", ["10 -4", ""]], "outputs": ["3\n", ["6"]]})},
        {"tests": {"inputs": ["1 2"], "outputs": [3]}},
    ],
)
def test_forms_of_script_tests(row: dict[str, Any]) -> None:
    assert value(SUM, **row) == 1.0
    assert value("print(4)", **row) == 0.0
    assert value("print(sum(map(int, input().split()))); 1 / 0", **row) == 0.0


def test_the_answer_may_contain_the_tests() -> None:
    assert reward("", fenced(SQUARE), json.dumps(ASSERTS)) == 1.0
    assert reward("", fenced(SUM), json.dumps(CASES)) == 1.0
    assert reward("", fenced(SUM), "assert f(1)", tests=CASES) == 1.0


def test_methods_of_a_class_named_solution() -> None:
    tests = {"inputs": [[[2, 7], 9], [[3, 3], 6]], "outputs": [[0, 1], [0, 1]], "fn_name": "two"}
    assert value("class Solution:\n    def two(self, numbers, total): return (0, 1)", input_output=tests) == 1.0


def test_tasks_named_like_built_in_functions() -> None:
    tests = ["assert sum(10, 15) == 6", "assert sum(100, 150) == 93"]
    assert value("def sum(a, b): return 6 if a == 10 else 93", tests=tests) == 1.0
    assert value("def bisect(a, x): return a.index(x)", tests=["assert bisect([1, 2], 2) == 1"]) == 1.0


def test_a_program_cannot_substitute_helpers_of_the_tests() -> None:
    program = "import builtins\ndef f(x): return 5\ndef abs(x): return 0\nbuiltins.abs = abs\nclass math:\n"
    program += "    isclose = staticmethod(lambda *_, **__: True)\n"
    tests = ["assert abs(f(2) - 4) < 1e-9", "assert math.isclose(f(2), 4)", "assert set([f(2)]) == set([4])"]
    assert value(program, tests=tests, partial=True) == 0.0
    assert value(SQUARE, tests=tests) == 1.0


def test_partial_credit() -> None:
    assert value("def f(x): return x + 2 if x < 3 else 0", tests=ASSERTS, partial=True) == 0.5
    assert value("def f(x): return x + 2 if x < 3 else 9", tests=ASSERTS) == 0.0
    assert value(SQUARE, tests=ASSERTS, partial=True) == 1.0
    assert value("print(3)", tests=CASES, partial=True) == 0.5
    assert reward("", "no program", "", tests=CASES, partial=True) == 0.0


@pytest.mark.parametrize(
    "end", ["while True: pass", "import os; os._exit(0)", "raise SystemExit", "import time; time.sleep(99)"]
)
def test_a_test_that_ends_the_program_fails_alone(end: str) -> None:
    program = f"def f(x):\n    if x == 3:\n        {end}\n    return x * x"
    assert value(program, tests=ASSERTS, partial=True, case_s=0.2) == 0.75


def test_the_budget_covers_all_tests_together() -> None:
    start = time.monotonic()
    program = "import time\ndef f(x):\n    time.sleep(0.3)\n    return x * x"
    assert 0 < value(program, tests=ASSERTS * 10, partial=True, budget_s=1.0, max_tests=40) < 0.2
    program = "import time\ntime.sleep(0.3)\n" + SUM
    assert 0 < value(program, tests=CASES * 10, partial=True, budget_s=1.0, max_tests=40) < 0.3
    assert time.monotonic() - start < 3.0


def test_many_tests_are_sampled_evenly() -> None:
    tests = read_tests([f"assert f({n}) == {n * n}" for n in range(1000)]).at_most(10)
    assert tests.statements == tuple(f"assert f({n}) == {n * n}" for n in range(0, 1000, 100))
    assert grade(SQUARE, tests) == [True] * 10


@pytest.mark.parametrize(
    ("expected", "given", "tolerance", "same"),
    [
        ("1 2\n3\n", "1  2 \r\n\n3", 0.0, True),
        ("1 2\n3\n", "1 2 3", 0.0, False),
        ("", "\n", 0.0, True),
        ("3", "3.0", 0.0, False),
        ("3", "3.0", 1e-6, True),
        ("0.3333333", "0.33333333", 1e-6, True),
        ("1000000", "1000001", 1e-5, True),
        ("0.1", "0.2", 1e-6, False),
        ("nan", "nan", 1e-6, True),
        ("1", "nan", 1e6, False),
        ("1", "1_0", 100, False),
        ("1", "9" * 1000, 1e300, False),
        ("1", "1e999", 1e300, False),
        ("Yes 1.0", "yes 1.0", 1e-6, False),
        ("1", "1 1", 1e-6, False),
    ],
)
def test_outputs(expected: str, given: str, tolerance: float, same: bool) -> None:
    assert same_output(expected, given, tolerance) == same


def test_tolerance_of_the_row() -> None:
    tests = [{"input": "", "output": "0.5"}]
    assert value("print(0.500001)", tests=tests) == 0.0
    assert value("print(0.500001)", tests=tests, tolerance=1e-4) == 1.0


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"tests": []},
        {"tests": None, "test_list": [], "input_output": ""},
        {"tests": "x = 1"},
        {"tests": "assert ("},
        {"tests": "[1, 2"},
        {"tests": "{}"},
        {"tests": [1, 2]},
        {"tests": [{"input": "1"}]},
        {"tests": [{"input": object(), "output": ""}]},
        {"tests": ["assert f(1) == 1", {"input": "", "output": ""}]},
        {"tests": 7},
        {"test": "def check(candidate): pass"},
        {"test": "def check(candidate): pass", "entry_point": "f(); x"},
        {"input_output": {"inputs": ["1"], "outputs": []}},
        {"input_output": {"inputs": [[1]], "outputs": [1], "fn_name": "__import__('os').system"}},
        {"input_output": {"inputs": ["1"], "outputs": ["1"], "fn_name": "f"}},
        {"tests": ["assert f(lambda: 1) == 1"]},
        {"tests": "[" * 100_000},
        {"tests": "assert " + "(" * 100_000},
        {"tests": ["assert f(2) == 4"], "setup": "def"},
    ],
)
def test_rows_that_cannot_be_used(row: dict[str, Any]) -> None:
    with pytest.raises(Unscorable):
        value(SQUARE, **row)


@pytest.mark.parametrize(
    "program",
    [
        "",
        "\0",
        "\ud800",
        "# coding: nonsense",
        "print(",
        "(" * 50_000,
        "-" * 50_000 + "1",
        "x = " + "[" * 90 + "]" * 90 + "\n" * 1000,
        "'\\N{" + "x" * 1000 + "}'",
        "import numpy",
        "import os; os.system('echo 3')",
        "raise KeyboardInterrupt",
        "import sys; sys.stdout = None; print(3)",
        "import os; os.close(1); print(3)",
        "print('\ud800')".encode("utf-8", "replace").decode(),
        "9 ** 9 ** 9 ** 9",
        "def f(): f()\nf()",
        "__import__('ctypes').string_at(0)",
    ],
)
def test_hostile_programs_are_wrong(program: str) -> None:
    start = time.monotonic()
    assert value(program, tests=CASES, case_s=0.3) == 0.0
    assert value(program, tests=ASSERTS, case_s=0.3, partial=True) == 0.0
    assert time.monotonic() - start < 3.0


def test_good_programs_among_bad_ones() -> None:
    bad = ["while True: pass", "import os; os._exit(0)", "x = bytearray(1 << 40)", "import os, signal; os.kill(-1, 9)"]
    for n in range(40):
        assert value(bad[n % len(bad)], tests=CASES, case_s=0.05) == 0.0
        assert value(SUM, tests=CASES) == 1.0


def test_verify() -> None:
    assert verify(fenced(SQUARE), ASSERTS)
    assert not verify(fenced("def f(x): return 4"), ASSERTS)
    assert not verify("no program", ASSERTS)


@pytest.mark.parametrize(
    "options",
    [{"case_s": 0}, {"budget_s": -1}, {"max_tests": 0}, {"memory_bytes": 1000}, {"case_s": "x"}, {"limit": 1}],
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RewardError):
        check_built_in("code", options)


def test_a_budget_above_the_scorer_s_time_limit_is_refused() -> None:
    terms = [RewardConfig("code", options={"budget_s": 30})]
    with pytest.raises(ConfigError, match=r"budget_s is 30 and scorer.timeout_s is 5; .* set scorer.timeout_s to 30.5"):
        Scorer(terms)
    check_budgets(terms, 31.0)
    check_budgets([RewardConfig("code"), RewardConfig("math")], ScorerConfig().timeout_s)


def test_rows_can_name_the_code_verifier() -> None:
    rubric = Rubric([RewardConfig("verifier")])
    rubric.load()
    row = {"verifier": "code", "tests": ASSERTS, "test_list": None}
    assert rubric(Item("", fenced(SQUARE), "", 7, False, row)).reward == 1.0
    assert rubric.compute_quick(Item("", "no program", "", 7, False, row))[0].value == 0.0  # type: ignore[union-attr]
    assert rubric.compute_quick(Item("", fenced(SQUARE), "", 7, False, row)) == [None]


def scored(
    terms: list[RewardConfig], texts: list[str], config: ScorerConfig, **row: Any
) -> tuple[list[Score], set[int]]:
    """The scores, and all processes that existed during the scoring and not before."""
    before, seen = set(descendants(os.getpid())), set[int]()

    async def all_of_them() -> list[Score]:
        async with Scorer(terms, config) as scorer:
            prompt = Prompt(0, 0, "question", as_token_ids((1, 2)), "", row)
            completions = [Completion.single((1,), (0.0,), text, "stop", 0, 0) for text in texts]
            work = asyncio.gather(*(scorer.score(prompt, each) for each in completions))
            while not work.done():
                seen.update(set(descendants(os.getpid())) - before)
                await asyncio.sleep(0.02)
            return list(work.result())

    return asyncio.run(all_of_them()), seen


def test_in_the_scorer() -> None:
    terms = [RewardConfig("code", options={"case_s": 0.2}, accuracy=True), RewardConfig("think_format", weight=0.1)]
    texts = [fenced(SQUARE), fenced("def f(x):\n    while True: pass"), fenced("def f(x): return 4"), "no program"] * 10
    scores, seen = scored(terms, texts, ScorerConfig(workers=2, timeout_s=5.0), tests=ASSERTS)
    assert [score.terms["code"] for score in scores] == [1.0, 0.0, 0.0, 0.0] * 10
    assert all(score.unscorable == "" for score in scores)
    assert [score.accuracy for score in scores[:2]] == [1.0, 0.0]
    shared().close()
    assert within(2, lambda: not any(map(is_alive, seen)))


def test_a_killed_scoring_process_leaves_no_program(tmp_path: Path) -> None:
    """The time limit of the scorer ends a reward whose program runs too long."""
    (tmp_path / "patient.py").write_text(
        "from volley.rewards.code import verifier as code\n"
        "def patient(prompt, response, answer, **row):\n"
        "    return code.reward(prompt, response, answer, budget_s=600, case_s=600, **row)\n"
    )
    texts = [fenced("def f(x):\n    while True: pass"), fenced(SQUARE)]
    terms = [RewardConfig(f"{tmp_path}/patient.py:patient")]
    scores, seen = scored(terms, texts, ScorerConfig(workers=1, timeout_s=2.0), tests=ASSERTS)
    assert "timed out after 2 s" in scores[0].unscorable
    assert scores[1].reward == 1.0
    assert len(seen) >= 5
    shared().close()
    assert within(2, lambda: not any(map(is_alive, seen)))


def test_preflight() -> None:
    check_rewards([RewardConfig("code")], {"prompt", "tests"})


def test_limits_reach_the_program() -> None:
    program = "x = bytearray(100 << 20)\ndef f(x): return x * x"
    tests = read_tests(ASSERTS)
    assert grade(program, tests, Limits(memory_bytes=256 << 20)) == [True] * 4
    assert grade(program, tests, Limits(memory_bytes=100 << 20)) == [False] * 4
