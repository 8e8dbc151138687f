"""Hostile answers are wrong, take bounded time and memory, and execute nothing."""

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.rewards.math.builders import CASES, boxed, math_scorer, math_scores
from tests.rewards.math.hostile import BASIC, HOSTILE
from volley.rewards.item import Unscorable
from volley.rewards.math.verifier import equivalent, reward, verify
from volley.rollout.types import Score

LIMIT_S = 2.0
MEMORY_BYTES = 200 << 20
FUZZ_S = float(os.environ.get("VOLLEY_FUZZ_S", "60"))

RUNNER = """
import json, os, resource, sys, time
sys.path.insert(0, sys.argv[1])
from volley.rewards.math import verifier as math
math.warm_up()
events = []
watched = ("compile", "exec", "import", "open", "os.", "subprocess.", "socket.", "ctypes.", "pty.")
sys.addaudithook(lambda event, arguments: event.startswith(watched) and events.append(event))
with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + int(sys.argv[2]),) * 2)
outcomes = []
for text, golds in json.load(sys.stdin):
    for gold in golds:
        boxed = chr(92) + "boxed{" + text + "}"
        for response in (boxed, "<answer>" + text + "</answer>", "The answer is " + text, text):
            events.clear()
            started = time.process_time()
            value = math.verify(response, gold)
            outcomes.append((gold, response[:200], value, time.process_time() - started, list(events)))
        started = time.process_time()
        math.equivalent(text, gold), math.equivalent(gold, text), math.equivalent(text, text)
        outcomes.append((gold, text[:200], False, time.process_time() - started, list(events)))
json.dump(outcomes, sys.stdout)
"""


@pytest.mark.parametrize("text", BASIC, ids=range(len(BASIC)))
@pytest.mark.parametrize("gold", ["18", r"\sqrt{2}", "Paris", "x=5"])
def test_hostile_answers_are_wrong_and_execute_nothing(text: str, gold: str, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    text = text.replace("{path}", str(mark))
    for response in (boxed(text), f"<answer>{text}</answer>", f"The answer is {text}", text):
        assert not verify(response, gold)
    assert not equivalent(text, gold)
    assert not equivalent(gold, text)
    assert not mark.exists()


def test_hostile_answers_stay_within_time_and_memory(tmp_path: Path) -> None:
    """In a process with limited memory: wrong verdicts, under 2 s each, no audit event that could be an attack."""
    mark = tmp_path / "executed"
    golds = ["18", r"\sqrt{2}", "Paris", "x^2+1", "(1,2)"]
    work = [(text.replace("{path}", str(mark)), [*golds, text[:250]]) for text in HOSTILE]
    child = subprocess.run(
        [sys.executable, "-c", RUNNER, str(Path(__file__).parents[3]), str(MEMORY_BYTES)],
        input=json.dumps(work),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    outcomes: list[tuple[str, str, bool, float, list[str]]] = json.loads(child.stdout)
    assert len(outcomes) == len(HOSTILE) * 6 * 5
    for gold, response, is_right, seconds, events in outcomes:
        assert not events, (response, events)
        assert seconds < LIMIT_S, (gold, response, seconds)
        assert not (is_right and gold in golds), (gold, response)
    assert not mark.exists()


def test_right_answers_after_hostile_ones_are_right() -> None:
    rng, started = random.Random(7), time.process_time()
    for number in range(10_000):
        text = rng.choice(HOSTILE)[:5000]
        assert not verify(boxed(text), str(number + 100))
        assert verify(f"so \\boxed{{{number + 100}}}", str(number + 100))
        if number % 100 == 0:
            assert verify(rf"\boxed{{\frac{{{number + 1}\sqrt{{12}}}}{{2}}}}", rf"{number + 1}\sqrt{{3}}")
    assert time.process_time() - started < 120


def test_right_answers_among_hostile_ones_are_right_in_the_scorer(tmp_path: Path) -> None:
    """Each hostile answer comes with a right number, which the caller decides, or a formula, which a child decides."""
    rng, path = random.Random(8), tmp_path / "executed"
    items: list[tuple[str, str, bool]] = []
    for index in range(10_000):
        text = rng.choice(HOSTILE).replace("{path}", str(path))[:5000]
        gold = str(index + 100) if index % 2 else rf"{index + 1}\sqrt{{3}}"
        items.append((boxed(text) if index % 4 else text, gold, False))
        items.append((f"so \\boxed{{{index + 100}}}", str(index + 100), True))
        if index % 10 == 0:
            items.append((rf"\boxed{{\frac{{{index + 1}\sqrt{{12}}}}{{2}}}}", rf"{index + 1}\sqrt{{3}}", True))

    async def main() -> list[Score]:
        async with math_scorer(workers=2) as scorer:
            return await math_scores(scorer, [(response, gold) for response, gold, _ in items])

    before, started = resident_bytes(), time.monotonic()
    for (response, gold, is_right), score in zip(items, asyncio.run(main()), strict=True):
        assert (score.reward, score.unscorable) == (float(is_right), ""), (response[:200], gold)
    assert time.monotonic() - started < 120
    assert resident_bytes() < before + (200 << 20)
    assert not path.exists()


PIECES = (*"}{^_9!,()x+|", "\\boxed{", "\\frac", "\\sqrt", "<think>", "</think>", "\u200b")


def mutated(text: str, rng: random.Random) -> str:
    for _ in range(rng.randrange(1, 6)):
        start, size = rng.randrange(len(text) + 1), rng.randrange(4)
        piece = rng.choice([*PIECES, text[start : start + 20] * 3, chr(rng.randrange(0x3000))])
        text = text[:start] + piece + text[start + size :]
    return text


@pytest.mark.faults
def test_random_mutations_raise_nothing_and_leak_nothing() -> None:
    """Mutates labelled cases and hostile answers for VOLLEY_FUZZ_S seconds."""
    rng, num_done, slowest = random.Random(int(time.time())), 0, 0.0
    pool = [case["response"] for case in CASES] + [boxed(text[:3000]) for text in HOSTILE]
    golds = [case["answer"] for case in CASES]
    ends, memory = time.monotonic() + FUZZ_S, 0
    while time.monotonic() < ends:
        response, gold = mutated(rng.choice(pool), rng), rng.choice(golds)
        gold = gold if rng.random() < 0.7 else mutated(gold, rng)
        started = time.thread_time()
        try:
            value: Any = reward("", response, gold)
        except Unscorable:
            value = 0.0
        seconds = time.thread_time() - started
        slowest = max(slowest, seconds)
        assert value in (0.0, 1.0)
        assert seconds < LIMIT_S, (gold, response)
        num_done += 1
        if num_done == 20_000:
            memory = resident_bytes()
    print(f"{num_done} answers, slowest {slowest * 1000:.0f} ms")
    assert memory == 0 or resident_bytes() < memory + (64 << 20)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
