"""Programs scored per second, in the sandbox and in the scorer.

    taskset -c 1 .venv/bin/python benchmarks/programs.py [--programs 300]       one core
    .venv/bin/python benchmarks/programs.py                                     all cores

For comparison, it also measures starting an interpreter for each program without a sandbox.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from volley.rewards.code import verifier as code
from volley.rewards.config import RewardConfig, ScorerConfig
from volley.rewards.sandbox.box import Sandbox, shared
from volley.rewards.scoring.scorer import Scorer
from volley.rollout.types import Completion, Prompt, as_token_ids

SCRIPT = "n = int(input())\nprint(sum(int(x) ** 2 for x in input().split()[:n]))\n"
FUNCTION = "from collections import Counter\ndef most(words):\n    return Counter(words).most_common(1)[0][0]\n"
CASES = [
    {"input": f"{n}\n{' '.join(map(str, range(n)))}\n", "output": str(sum(x * x for x in range(n)))} for n in range(10)
]
ASSERTS = [f"assert most(['a', 'b', {word!r}, {word!r}]) == {word!r}" for word in ("c", "d", "e")]
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "script, 1 case": (SCRIPT, {"tests": CASES[:1]}),
    "script, 10 cases": (SCRIPT, {"tests": CASES}),
    "function, 3 asserts": (FUNCTION, {"test_list": ASSERTS}),
    "syntax error": ("def most(", {"test_list": ASSERTS}),
}


def rate(num: int, judge: Callable[[], Any]) -> float:
    judge()
    start = time.perf_counter()
    for _ in range(num):
        judge()
    return num / (time.perf_counter() - start)


def fenced(program: str) -> str:
    return f"```python\n{program}\n```"


async def in_the_scorer(program: str, row: dict[str, Any], num: int, workers: int) -> float:
    completion = Completion.single((1,), (0.0,), fenced(program), "stop", 0, 0)
    async with Scorer([RewardConfig("code")], ScorerConfig(workers=workers)) as scorer:
        start = time.perf_counter()
        prompt = Prompt(0, 0, "", as_token_ids([1]), "", row)
        scores = await asyncio.gather(*(scorer.score(prompt, completion) for _ in range(num)))
        seconds = time.perf_counter() - start
    assert all(score.unscorable == "" for score in scores)
    return num / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=300)
    num = parser.parse_args().programs
    sandbox = Sandbox()
    start = time.perf_counter()
    sandbox.start()
    print(f"start and self-test: {time.perf_counter() - start:.2f} s, isolation: {sandbox.isolation}")
    sandbox.close()
    cores = len(os.sched_getaffinity(0))
    command = [sys.executable, "-I", "-S", "-c", SCRIPT]
    alone = rate(num // 3, lambda: subprocess.run(command, input=CASES[0]["input"].encode(), stdout=subprocess.DEVNULL))
    print(f"{'new interpreter':24} {alone:7.0f} programs/s")
    for name, (program, row) in ROWS.items():
        judged = rate(num, lambda program=program, row=row: code.reward("", fenced(program), "", **row))  # type: ignore[misc]
        scored = asyncio.run(in_the_scorer(program, row, 2 * num, cores))
        print(f"{name:24} {judged:7.0f} responses/s; {scored:7.0f} with the scorer and {cores} workers")
    shared().close()


if __name__ == "__main__":
    main()
