"""Shared by the tests of the sandbox: programs that attack, and helpers to look at processes."""

import textwrap
import time
from collections.abc import Callable
from pathlib import Path

from volley.rewards.sandbox.box import Sandbox
from volley.rewards.sandbox.types import Limits, Script

LIMITS = Limits(case_s=1.0, memory_bytes=256 << 20, output_bytes=1 << 16)
LONG = Limits(case_s=5.0)
BRIEF = Limits(case_s=0.2, all_s=0.2)
# Runs each line of its input as an attempt, and prints the numbers of those that did not raise.
ATTEMPTS = """
import ctypes, io, os, resource, signal, socket, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(function, *arguments):
    if getattr(libc, function)(*arguments) < 0:
        raise OSError
for number, attempt in enumerate(sys.stdin.read().splitlines()):
    try:
        exec(attempt)
    except BaseException:
        continue
    print(number)
print("end")
"""
# All text and numbers that a program can reach from its frames, modules and open files. They are reversed, so that the
# search does not find its own arguments.
SEARCH = """
import gc, os, sys
def everything():
    seen, found, left = set(), [], [sys._getframe(), sys.modules, *gc.get_objects()]
    while left:
        each = left.pop()
        if id(each) not in seen:
            seen.add(id(each))
            found += [each] if isinstance(each, (str, bytes, int)) else []
            left += gc.get_referents(each)
    for number in range(64):
        try:
            found.append(os.pread(number, 10000, 0))
        except OSError:
            pass
    assert len(found) > 1000
    return {str(each)[::-1] for each in found if not isinstance(each, int) or abs(each) < 10**9}
"""


def run(sandbox: Sandbox, program: str, stdin: str = "", limits: Limits = LIMITS) -> Script:
    return sandbox.run_script(textwrap.dedent(program).encode(), stdin.encode(), limits)


def what_works(sandbox: Sandbox, attempts: list[str]) -> list[str]:
    script = run(sandbox, ATTEMPTS, "\n".join(attempts))
    *numbers, end = script.output.decode().split()
    assert end == "end"
    return [attempts[int(number)] for number in numbers]


def descendants(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [each for child in map(int, children) for each in (child, *descendants(child))]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()
