"""Answers that are Python programs: whether they pass the row's tests. They run in the sandbox (`sandbox.box`).

    verify(response, tests) -> bool        extract(response) -> str | None        grade(program, tests) -> list[bool]

The program cannot forge a verdict. The output of a script is compared outside of the sandbox. Assert statements run in
a different process from the program, which only answers their calls with plain values: it sees the arguments, never the
expected value. Two kinds of cheating remain possible: a program that knows the tests from its prompt and lists their
answers; and, if a test lets a helper or an object of the program do the comparison, a program that lies in it.

Programs have the standard library and threads, but no other packages, files, processes or network. A test cannot pass
the program a function, or an object of a class that the test itself defines; such rows are unscorable.
"""

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from volley.rewards.code.cases import Tests, read_tests, same_output
from volley.rewards.config import RewardConfig
from volley.rewards.item import Unscorable
from volley.rewards.sandbox.box import Sandbox, shared
from volley.rewards.sandbox.types import Limits
from volley.rewards.think_format import after_thinking, with_opened_thinking
from volley.rollout.errors import ConfigError

MAX_CHARACTERS = 65_536
MAX_TESTS = 32
MIN_MEMORY_BYTES = 64 << 20
SPARE_OUTPUT_BYTES = 65_536
START_S = 0.5
DEFAULTS = Limits()
BUDGET_S = 4.0

# Possessive quantifiers, because backtracking would take quadratic time on long lines.
_FENCE = re.compile(r"^([ \t]{0,3}+)(`{3,}+|~{3,}+)[ \t]*+([^\s`]*+)[^\n`]*+$", re.MULTILINE)


def extract(response: str) -> str | None:
    """The program in a response: after thinking, the last block fenced as Python, else the last without a language.

    None if there is no such block, if the last block is not closed, or beyond `MAX_CHARACTERS`.
    """
    text = after_thinking(response)
    program: str | None = None
    is_marked = False
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(text or ""):
        if opened is None:
            opened = fence
        elif fence[2].startswith(opened[2]) and not fence[3]:
            marked = opened[3].lower() in ("python", "py", "python3")
            if marked or not (opened[3] or is_marked):
                inside = fence.string[opened.end() + 1 : fence.start()]
                program, is_marked = re.sub(f"^[ \\t]{{0,{len(opened[1])}}}", "", inside, flags=re.MULTILINE), marked
            opened = None
    if opened is not None or program is None or len(program) > MAX_CHARACTERS:
        return None
    return program


def verify(response: str, tests: Any, setup: str = "", **options: Any) -> bool:
    """Whether the response's program passes all tests.

    - tests: in one of the forms of the column `tests`, see `cases`.
    - setup: Python text that runs before assert statements.
    - options: those of `reward`.

    Raises Unscorable for tests that cannot be used, RewardError if this system cannot provide a sandbox.
    """
    return reward("", response, "", tests=tests, setup=setup, **options) == 1.0


def reward(
    prompt: str,
    response: str,
    answer: str,
    *,
    tests: Any = None,
    test_list: Any = None,
    test: Any = None,
    entry_point: Any = None,
    input_output: Any = None,
    setup: str | None = "",
    test_setup_code: str | None = "",
    test_imports: Sequence[str] | None = (),
    tolerance: float = 0.0,
    partial: bool = False,
    max_tests: int = MAX_TESTS,
    case_s: float = DEFAULTS.case_s,
    budget_s: float = BUDGET_S,
    memory_bytes: int = DEFAULTS.memory_bytes,
    **row: Any,
) -> float:
    """1.0 if the response's program passes all tests, else 0.0, also if it is missing, broken or too slow.

    - tests ... test_imports: columns of the row, see `cases`. If none is there, the answer contains the tests.
    - setup: Python text that runs before assert statements, in their process.
    - tolerance: see `same_output`.
    - partial: the fraction of passed tests instead, in [0, 1].
    - max_tests: if there are more tests, this many are used, evenly spread.
    - case_s: processor time per test, in seconds. The wall-clock limit is twice as long.
    - budget_s: wall-clock limit per response. Tests that are not reached count as failed.
    - memory_bytes: address space of the program.

    Raises Unscorable for tests that are missing or cannot be used.
    """
    if case_s <= 0 or budget_s <= 0 or max_tests < 1:
        raise ValueError("case_s, budget_s and max_tests must be above 0")
    if memory_bytes < MIN_MEMORY_BYTES:
        raise ValueError(
            f"memory_bytes is {memory_bytes}; it must be at least {MIN_MEMORY_BYTES}, which Python alone needs"
        )
    setup = "\n".join(each for each in (*(test_imports or ()), setup, test_setup_code) if each)
    if not any(_has_content(column) for column in (tests, test_list, test, input_output)):
        tests = answer
    given = read_tests(tests, test_list, test, entry_point, input_output, setup)
    program = extract_answer(prompt, response, answer)
    if program is None:
        return 0.0
    limits = Limits(case_s=case_s, memory_bytes=memory_bytes)
    passed = grade(program, given.at_most(max_tests), limits, budget_s, float(tolerance or 0.0), stop_early=not partial)
    return sum(passed) / len(passed) if partial else float(all(passed))


def quick_reward(prompt: str, response: str, answer: str, **row: Any) -> float | None:
    """`reward` if there is no program to run, else None."""
    return reward(prompt, response, answer, **row) if extract_answer(prompt, response, answer) is None else None


def extract_answer(prompt: str, response: str, answer: str, **row: Any) -> str | None:
    """The program that `reward` finds in the response; None if there is none."""
    return extract(with_opened_thinking(prompt, response))


def grade(
    program: str,
    tests: Tests,
    limits: Limits = DEFAULTS,
    budget_s: float = BUDGET_S,
    tolerance: float = 0.0,
    stop_early: bool = False,
) -> list[bool]:
    """Which tests a program passes. stop_early: tests after the first failure count as failed and are not run."""
    try:
        source = program.encode()
    except UnicodeEncodeError:  # a lone surrogate is not valid source text
        return [False] * len(tests)
    sandbox = shared()
    sandbox.start()
    deadline = time.monotonic() + budget_s
    if tests.cases:
        verdicts = _run_cases(sandbox, source, tests, limits, deadline, tolerance)
    else:
        verdicts = _run_statements(sandbox, source, tests, limits, deadline)
    passed: list[bool] = []
    for each in verdicts:
        passed += each
        if stop_early and False in passed:
            break
    return passed + [False] * (len(tests) - len(passed))


def _run_cases(
    sandbox: Sandbox, source: bytes, tests: Tests, limits: Limits, deadline: float, tolerance: float
) -> Iterator[list[bool]]:
    """Run the program as a script, once per case. Yields one verdict at a time, until the deadline."""
    for given, expected in tests.cases:
        left = deadline - time.monotonic()
        if left <= 0:
            return
        case_limits = replace(
            limits,
            case_s=min(limits.case_s, left / 2),
            output_bytes=2 * len(expected.encode()) + SPARE_OUTPUT_BYTES,
        )
        script = sandbox.run_script(source, given.encode(errors="replace"), case_limits)
        succeeded = script.ended and script.status == 0
        yield [succeeded and same_output(expected, script.output.decode(errors="replace"), tolerance)]


def _run_statements(
    sandbox: Sandbox, source: bytes, tests: Tests, limits: Limits, deadline: float
) -> Iterator[list[bool]]:
    """Run the statements against one process of the program, which is restarted after a test that ended it.

    Yields the verdicts per process, until the deadline.
    """
    num_done = 0
    while num_done < len(tests.statements) and (left := deadline - time.monotonic()) > 0:
        job = {"setup": tests.setup, "names": tests.names, "tests": tests.statements[num_done:]}
        outcome = sandbox.run_tests(source, job, replace(limits, all_s=left / 2))
        if "?" in outcome:
            raise Unscorable("a test passes the program a function or an object of its own, which is not supported")
        if not outcome:
            return
        num_done += len(outcome)
        yield [each == "1" for each in outcome]


def _has_content(column: Any) -> bool:
    return bool(column) if isinstance(column, (str, list, dict)) else column is not None


def check_budgets(terms: Iterable[RewardConfig], timeout_s: float) -> None:
    """Raise ConfigError if a program could run longer than the scorer's `timeout_s`.

    Its response would then be unscorable instead of wrong.
    """
    for term in terms:
        budget_s = term.options.get("budget_s", BUDGET_S)
        if term.name == "code" and isinstance(budget_s, (int, float)) and budget_s + START_S > timeout_s:
            raise ConfigError(
                f"reward 'code': budget_s is {budget_s:g} and scorer.timeout_s is {timeout_s:g}; programs must be "
                f"stopped before the scoring process is, so set scorer.timeout_s to {budget_s + START_S:g} or more."
            )


def warm_up() -> None:
    """Start and test the sandbox, so that the first response does not have to wait. Raises RewardError if it fails."""
    shared().start()


def check_system() -> str:
    """The isolation that works on this system, `bwrap` or `namespaces`. Raises RewardError if none does."""
    sandbox = Sandbox()
    try:
        sandbox.start()
        return sandbox.isolation
    finally:
        sandbox.close()
