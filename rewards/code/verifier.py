"""Answers that are Python programs: do they pass the row's tests? They run in a sandbox, see `box`.

    verify(response, tests) -> bool        extract(response) -> str | None        grade(program, tests) -> list[bool]

The program cannot forge a verdict. What a script should print is compared outside of the sandbox. Assert statements run
in another process than the program, which only answers their calls, with plain values: it sees the arguments, never the
expected value. What this cannot stop: a program that knows the tests from its prompt and lists their answers; and,
where a test has a helper or an object of the program compare for it, one that lies.

Programs have the standard library and threads, but no other packages, files, processes or network. A test cannot hand
the program a function or an object of a class that the test itself defines: such rows are unscorable.
"""

import re
import time
from collections.abc import Iterable, Sequence
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

# Each part takes all that it can and gives nothing back, or a long line would take time by its square.
_FENCE = re.compile(r"^([ \t]{0,3}+)(`{3,}+|~{3,}+)[ \t]*+([^\s`]*+)[^\n`]*+$", re.MULTILINE)


def extract(response: str) -> str | None:
    """The program of a response: the last block fenced as Python after thinking, or the last block of no language where
    there is none. None where there is no block, where the last is not closed, and beyond `MAX_CHARACTERS`."""
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
    """Whether the response's program passes all tests, given as the column `tests` of `cases`. Raises
    Unscorable for tests that cannot be used, RewardError where this system cannot hold a program; options: of
    `reward`."""
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
    """1.0 if the response's program passes all tests, else 0.0. No program, a broken one and one too slow are wrong.

    tests ... test_imports: of the row, see `cases`; where none is there, the answer holds the tests.
    setup: Python text that runs before assert statements, beside them. tolerance: see `same_output`.
    partial: the share of passed tests instead, in [0, 1].
    max_tests: of more, so many are used, evenly spread. case_s: seconds of processor time for one test, and twice as
    much on the clock. budget_s: on the clock for a response; tests that are not come to are not passed.
    memory_bytes: address space of the program. Raises Unscorable for tests that are missing or cannot be used.
    """
    if case_s <= 0 or budget_s <= 0 or max_tests < 1:
        raise ValueError("case_s, budget_s and max_tests must be above 0")
    if memory_bytes < MIN_MEMORY_BYTES:
        raise ValueError(f"memory_bytes is {memory_bytes}; Python alone needs {MIN_MEMORY_BYTES}")
    setup = "\n".join(each for each in (*(test_imports or ()), setup, test_setup_code) if each)
    if not any(_is_there(column) for column in (tests, test_list, test, input_output)):
        tests = answer
    given = read_tests(tests, test_list, test, entry_point, input_output, setup)
    program = extract_answer(prompt, response, answer)
    if program is None:
        return 0.0
    limits = Limits(case_s=case_s, memory_bytes=memory_bytes)
    passed = grade(program, given.at_most(max_tests), limits, budget_s, float(tolerance or 0.0), stop_early=not partial)
    return sum(passed) / len(passed) if partial else float(all(passed))


def quick_reward(prompt: str, response: str, answer: str, **row: Any) -> float | None:
    """`reward` where there is no program to run, else None."""
    return reward(prompt, response, answer, **row) if extract_answer(prompt, response, answer) is None else None


def extract_answer(prompt: str, response: str, answer: str, **row: Any) -> str | None:
    """The program that `reward` takes for the response's answer, None where there is none."""
    return extract(with_opened_thinking(prompt, response))


def grade(
    program: str,
    tests: Tests,
    limits: Limits = DEFAULTS,
    budget_s: float = BUDGET_S,
    tolerance: float = 0.0,
    stop_early: bool = False,
) -> list[bool]:
    """Which tests a program passes. stop_early: those after the first failure count as failed, without a run."""
    try:
        source = program.encode()
    except UnicodeEncodeError:  # half of a surrogate pair is no source text
        return [False] * max(len(tests.cases), len(tests.statements))
    sandbox = shared()
    sandbox.start()
    deadline = time.monotonic() + budget_s
    run = _run_cases if tests.cases else _run_statements
    passed = run(sandbox, source, tests, limits, deadline, tolerance, stop_early)
    return passed + [False] * (max(len(tests.cases), len(tests.statements)) - len(passed))


def _run_cases(
    sandbox: Sandbox, source: bytes, tests: Tests, limits: Limits, deadline: float, tolerance: float, stop_early: bool
) -> list[bool]:
    passed: list[bool] = []
    for given, expected in tests.cases:
        left = deadline - time.monotonic()
        if left <= 0 or (stop_early and False in passed):
            break
        bounds = replace(
            limits,
            case_s=min(limits.case_s, left / 2),
            output_bytes=2 * len(expected.encode()) + SPARE_OUTPUT_BYTES,
        )
        script = sandbox.run_script(source, given.encode(errors="replace"), bounds)
        is_over = script.ended and script.status == 0
        passed.append(is_over and same_output(expected, script.output.decode(errors="replace"), tolerance))
    return passed


def _run_statements(
    sandbox: Sandbox, source: bytes, tests: Tests, limits: Limits, deadline: float, tolerance: float, stop_early: bool
) -> list[bool]:
    """A program that one test has ended is started anew for the next."""
    passed: list[bool] = []
    while len(passed) < len(tests.statements) and not (stop_early and False in passed):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        job = {"setup": tests.setup, "names": tests.names, "tests": tests.statements[len(passed) :]}
        outcome = sandbox.run_tests(source, job, replace(limits, all_s=left / 2))
        if "?" in outcome:
            raise Unscorable("a test hands the program a function or an object of its own, which cannot be done")
        if not outcome:
            break
        passed += [each == "1" for each in outcome]
    return passed


def _is_there(column: Any) -> bool:
    return bool(column) if isinstance(column, (str, list, dict)) else column is not None


def check_budgets(terms: Iterable[RewardConfig], timeout_s: float) -> None:
    """Raises ConfigError where a program could run for longer than a scorer's `timeout_s`: its response would be
    unscorable instead of wrong."""
    for term in terms:
        budget_s = term.options.get("budget_s", BUDGET_S)
        if term.name == "code" and isinstance(budget_s, (int, float)) and budget_s + START_S > timeout_s:
            raise ConfigError(
                f"reward 'code': budget_s is {budget_s:g} and scorer.timeout_s is {timeout_s:g}; programs must be "
                f"stopped before their scorer is, so set scorer.timeout_s to {budget_s + START_S:g} or more."
            )


def warm_up() -> None:
    """Start the sandbox and prove that it holds, so that no response pays for it. Raises RewardError where it does
    not."""
    shared().start()


def check_system() -> str:
    """Whose walls hold programs on this system, `bwrap` or `namespaces`. Raises RewardError where none do."""
    sandbox = Sandbox()
    try:
        sandbox.start()
        return sandbox.walls
    finally:
        sandbox.close()
