"""Hostile answers: the right verdict or unscorable, each within seconds and megabytes, and nothing of them executed."""

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.rewards.scoring_helpers import children_of
from volley.rewards.config import RewardConfig, ScorerConfig
from volley.rewards.item import Unscorable
from volley.rewards.math import verifier as math
from volley.rewards.math.expressions import limits
from volley.rewards.math.expressions.evaluate import evaluate
from volley.rewards.math.expressions.grammar import parse
from volley.rewards.math.expressions.limits import MAX_STEPS, StepLimitError, count_steps, step_limit
from volley.rewards.math.verifier import equivalent, extract, reward, verify
from volley.rewards.scoring.scorer import Scorer
from volley.rollout.types import Completion, Prompt, Score, as_token_ids

LIMIT_S = 2.0
MEMORY_BYTES = 200 << 20
FUZZ_S = float(os.environ.get("VOLLEY_FUZZ_S", "60"))

HOSTILE = [
    "10^{10^{10}}",
    "9**9**9**9",
    "2^{2^{2^{2^{2^{2}}}}}",
    "((9^{999})^{999})^{999}",
    "(10^{4000})^{1/10^{40}}",
    "1e999999999",
    "9" * 250,
    "0." + "0" * 200 + "1",
    "100000!",
    "((500!)!)!",
    r"\binom{10^{9}}{10^{8}}",
    r"\binom{500}{250}^{500}",
    r"\sqrt{" * 11 + "2" + "}" * 11,
    r"\sqrt{" * 60 + "2" + "}" * 60,
    r"\sqrt[10^{10}]{2}",
    r"\sqrt[3]{\sqrt[5]{\sqrt[7]{\sqrt[11]{10^{300}}}}}",
    "(" * 50_000 + ")" * 50_000,
    "{" * 100_000,
    "\\frac{1}{" * 5_000,
    "(" * 120 + "x" + ")" * 120,
    "|" * 200,
    "-" * 200 + "1",
    "1" + "+1" * 120,
    "x^2" * 80,
    "(x+1)^{99}" * 20,
    "(a+b+c+d+e+f+g+h)^{500}",
    r"\sin(" * 10 + "x" + ")" * 10,
    r"\sin\cos\tan" * 20,
    r"e^{e^{e^{e^{e}}}}",
    r"\tan(10^{300})",
    r"\gamma(0.5)! + (-0.5)!",
    r"\lfloor 10^{4000}\pi\rfloor",
    r"\log_{1.0000000001} 2",
    "1,2," * 60 + "3",
    r"\pm" * 80 + "1",
    r"\pm 1," * 40 + "1",
    r"\{" + ",".join(f"x^{{{n}}}" for n in range(30)) + r"\}",
    r"\begin{pmatrix}" + "&".join("1" * 60) + r"\end{pmatrix}",
    "x" * 1_000_000,
    "\\boxed{" * 100_000,
    "__import__('os').system('touch {path}')",
    r"\text{__import__('os').system('touch {path}')}",
    "(__import__('os')).system('touch {path}')",
    r"\operatorname{__import__}(os).system(touch {path})",
    "x.__class__.__mro__",
    "().__class__.__bases__[0].__subclasses__()",
    "lambda: 1",
    "(lambda x: x)(1)",
    "[x for x in ().__class__.__mro__]",
    "{0.__class__.__init__.__globals__}",
    "{x!r:>{width}}",
    "%s%s%n%(a)s",
    "f'{open(1)}'",
    "eval(compile('1','','eval'))",
    "Symbol('x').func",
    "sympify('1')",
    "1\u200b8",
    "\u202e81\u202c",
    "\u206618\u2069",
    "\ufeff18",
    "\N{SCRIPT CAPITAL B}8",
    "1\N{CYRILLIC SMALL LETTER O}",
    "\u217718",
    "\x0018",
    "\ud83d18",
    "{18",
    "<think>18",
    "18<think></think><think>",
    "<answer>" * 1000 + "18",
    "<answer>18</answer>" * 500 + "<answer>19</answer>",
    "the answer is " + "the " * 5000,
    "answer: " + " " * 16_000 + "% 18",
    " " * 16_000 + "%",
    "<!--" * 4000 + "18",
    "\\phantom{" * 1600 + "18",
    "\\boxed{1}" + "\\quad" * 3000 + "\\boxed{2}",
    "\\begin{comment}" * 4000 + "18",
    "% " * 20_000 + "18",
    "thus " * 10_000 + "18",
    "the answer is $$" * 4000,
    "so it is $" * 5000,
    "therefore \\[" * 5000 + "18\\]",
    "\\boxed{18}" + " or 17" * 5000,
    "18 or " * 5000 + "\\boxed{19}",
    "not " * 10_000 + "\\boxed{18}",
    "I don't think that " * 3000 + "\\boxed{18}",
    "\\boxed{17}" + "?!" * 10_000 + " no, it is wrong",
    "\\textcolor{" * 25 + "18" + "}" * 25,
    "\\;" * 120 + "17",
    "1/0",
    "0^0",
    "0/0",
    r"\infty-\infty",
    r"\log(0)",
    "i^i^i^i^i^i",
]
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


def test_hostile_answers_are_wrong_cheap_and_run_nothing(tmp_path: Path) -> None:
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


# Found by a random search for what takes longest: lists against a sum that has a value at few points.
LONG = [
    (
        r"-x+\log_{x!}(x)+-x+-x+-x+3+\lfloor x!\rfloor+1+-x+-x+5+\arctan(x)+\sin(e)+2+-x+-x+-x+\log_{n}(-"
        r"x)+\ln(z)+\binom{x^2}{x}+\log_{√x}(\pi )+-x+|3|+1/x+1/x+\arcsin(√x)+-x+-x+-x+-x+4+i+-x+1+\binom"
        r"{√x}{b}+-x+-x+-x+6+z\pm x!+2+-x+|a|+(3)!+0+-x+2",
        r"\{\sinh(\log_{3}(√x))+3,\sqrt[\sqrt{i}]{|b|}+0,\frac{i}{x}+4,\sinh(\csc(2)),\frac{i}{x},\pi ,\f"
        r"rac{i}{x}+2,\ln(\binom{-x}{z}),\frac{i}{x},(\log_{x!}(3))!,x^2,x!\pm \log_{a}(3),\frac{i}{x},x^"
        r"2,\sinh(\log_{3}(√x)),\frac{i}{x}\}",
    ),
    (
        r"n+\binom{|(\sin(y))^{\ln(1/x)}|}{e^{\sin(\log_{z}(x!))}}+0+\binom{|(\sin(y))^{\ln(1/x)}|}{e^{\s"
        r"in(\log_{z}(x!))}}+\binom{|(\sin(y))^{\ln(1/x)}|}{e^{\sin(\log_{z}(x!))}}+1+\sinh((|y|\pm b\pm "
        r"x^2)^{\sqrt[\arcsin(2)]{\ln(x^2)}})",
        r"\{-x,\sqrt{a},-x,(y)!,-x,-x,x+3+5,\sqrt{a},-x,-x,\sqrt{a}+8,-x,\arctan(1/x),-x+2,-x,2+6,\csc(3)"
        r",\sqrt{a},\sqrt{a},\sqrt{a},\sqrt{a}+8,\log_{1/x}(a),\sqrt{a}+0,i,y+2,-x+0,-x,-x,\sqrt{a},\sin("
        r"3),|b|+6,\ln(1/x)+3,\frac{√x}{x},-x,\sqrt{a}+4,-x+5\}",
    ),
    (
        r"e^{\sin(\pi )}+n+x^2\pm x^2+y+\log_{\csc(e)}(n+a)+\binom{e}{\sin(√x)}+8+\log_{\csc(e)}(n+a)+8+a"
        r"+\log_{\csc(e)}(n+a)+4+\sin(a)+e^{(2)^{y}}+(\binom{-x}{1/x})^{\arcsin(\pi )}+\log_{\csc(e)}(n+a"
        r")+4+\sqrt{\log_{x}(b)}+6+\log_{\csc(e)}(n+a)",
        r"\{\sinh(z),\sinh(z)+4,x!,x^2,(-x)!,\ln(x^2),\ln(x^2),\sinh(z)+5,|x^2|,\sinh(z),\sinh(z),(\pi )!"
        "+4,\\ln(x^2),\\sinh(z)+5,\\sinh(z),\\ln(x^2),\\ln(x^2),\\sinh(z),\\sqrt[b]{2}+5,(i)!+2,x!+3,\\sinh(z),\\"
        r"sqrt[-x]{x!},\ln(x^2),\sinh(z),(x)!+8,\sinh(z),e^{3}\}",
    ),
]


@pytest.mark.parametrize(("gold", "given"), LONG, ids=range(len(LONG)))
def test_many_comparisons_of_long_answers_are_bounded_together(gold: str, given: str) -> None:
    started = time.thread_time()
    assert not equivalent(gold, given)
    assert time.thread_time() - started < LIMIT_S
    assert not verify(f"\\boxed{{{given}}}", gold)
    with step_limit():
        for _ in range(MAX_STEPS):
            count_steps(1)
        with pytest.raises(StepLimitError):
            evaluate(parse("1"))
    assert evaluate(parse("1"))[0] == 1


@pytest.mark.parametrize("limit_s", [0.05, None], ids=["a limit of one's own", "the usual limit"])
def test_no_verdict_takes_longer_than_its_limit(limit_s: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any thread, also where the bound in steps does not come to its help."""
    monkeypatch.setattr(limits, "MAX_STEPS", 10**12)
    (gold, given), options = LONG[0], {} if limit_s is None else {"limit_s": limit_s}

    def try_all() -> float:
        started = time.thread_time()
        with pytest.raises(Unscorable, match=f"timed out after {limit_s or 2:g} s"):
            reward("", f"\\boxed{{{given}}}", gold, **options)
        seconds = time.thread_time() - started
        if limit_s:
            assert not verify(f"\\boxed{{{given}}}", gold, **options)
            assert not equivalent(gold, given, **options)
        return seconds

    num_threads = 2 if limit_s else 1
    with ThreadPoolExecutor(num_threads) as threads:
        assert max(threads.map(lambda _: try_all(), range(num_threads))) < 1 + (limit_s or 2)
    assert verify(r"\boxed{\frac{\sqrt{12}}{2}}", r"\sqrt{3}")


def test_extraction_that_takes_too_long_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It compares what stands in several `<answer>` tags."""
    monkeypatch.setattr(limits, "MAX_STEPS", 10**12)
    monkeypatch.setattr(math, "LIMIT_S", 0.05)
    tagged = "".join(f"<answer>{text}</answer>" for text in LONG[0])
    assert extract(tagged) is None
    assert not verify(tagged, "18")


def test_a_verdict_that_takes_too_long_is_unscorable_and_costs_no_child() -> None:
    async def main() -> tuple[Score, Score]:
        terms, config = [RewardConfig("math", options={"limit_s": 0.05})], ScorerConfig(workers=1)
        async with Scorer(terms, config) as scorer:
            (gold, given), children = LONG[0], children_of(os.getpid())
            hard = Completion.single((), (), f"\\boxed{{{given}}}", "stop", 0, 0)
            slow = scorer.score(Prompt(0, 0, "", as_token_ids(()), gold), hard)
            good = Completion.single((), (), r"\boxed{\frac{\sqrt{12}}{2}}", "stop", 0, 0)
            scores = await asyncio.gather(slow, scorer.score(Prompt(0, 0, "", as_token_ids(()), r"\sqrt{3}"), good))
            assert children_of(os.getpid()) == children
            return scores[0], scores[1]

    slow, good = asyncio.run(main())
    assert slow.unscorable == "reward 'math': timed out after 0.05 s"
    assert (good.reward, good.unscorable) == (1.0, "")
    assert (math.LIMIT_S, ScorerConfig().timeout_s) == (2.0, 5.0)


def test_ten_thousand_hostile_answers_lose_no_good_one() -> None:
    chance, started = random.Random(7), time.process_time()
    for number in range(10_000):
        text = chance.choice(HOSTILE)[:5000]
        assert not verify(f"\\boxed{{{text}}}", str(number + 100))
        assert verify(f"so \\boxed{{{number + 100}}}", str(number + 100))
        if number % 100 == 0:
            assert verify(rf"\boxed{{\frac{{{number + 1}\sqrt{{12}}}}{{2}}}}", rf"{number + 1}\sqrt{{3}}")
    assert time.process_time() - started < 120


def test_ten_thousand_through_the_scorer_lose_no_good_one(tmp_path: Path) -> None:
    """Each hostile answer next to a good one that the caller can judge, and one that takes a child."""
    chance, mark = random.Random(8), tmp_path / "executed"
    items: list[tuple[str, str, bool]] = []
    for place in range(10_000):
        text = chance.choice(HOSTILE).replace("{path}", str(mark))[:5000]
        gold = str(place + 100) if place % 2 else rf"{place + 1}\sqrt{{3}}"
        items.append((f"\\boxed{{{text}}}" if place % 4 else text, gold, False))
        items.append((f"so \\boxed{{{place + 100}}}", str(place + 100), True))
        if place % 10 == 0:
            items.append((rf"\boxed{{\frac{{{place + 1}\sqrt{{12}}}}{{2}}}}", rf"{place + 1}\sqrt{{3}}", True))

    async def main() -> list[Score]:
        async with Scorer([RewardConfig("math")], ScorerConfig(workers=2)) as scorer:
            prompts = [Prompt(0, 0, "", as_token_ids(()), gold) for _, gold, _ in items]
            completions = [Completion.single((), (), response, "stop", 0, 0) for response, _, _ in items]
            return list(await asyncio.gather(*map(scorer.score, prompts, completions)))

    before, started = resident_bytes(), time.monotonic()
    for (response, gold, is_good), score in zip(items, asyncio.run(main()), strict=True):
        assert (score.reward, score.unscorable) == (float(is_good), ""), (response[:200], gold)
    assert time.monotonic() - started < 120
    assert resident_bytes() < before + (200 << 20)
    assert not mark.exists()


PIECES = (*"}{^_9!,()x+|", "\\boxed{", "\\frac", "\\sqrt", "<think>", "</think>", "\u200b")


def mutated(text: str, chance: random.Random) -> str:
    for _ in range(chance.randrange(1, 6)):
        place, size = chance.randrange(len(text) + 1), chance.randrange(4)
        piece = chance.choice([*PIECES, text[place : place + 20] * 3, chr(chance.randrange(0x3000))])
        text = text[:place] + piece + text[place + size :]
    return text


@pytest.mark.faults
def test_fuzz() -> None:
    """Mutations of the table and of hostile answers, for VOLLEY_FUZZ_S seconds: no exception, nothing slow, no leak."""
    chance, num_done, slowest = random.Random(int(time.time())), 0, 0.0
    lines = Path(__file__).with_name("math_cases.jsonl").read_text().splitlines()
    cases: list[dict[str, str]] = [json.loads(line) for line in lines]
    pool = [case["response"] for case in cases] + [f"\\boxed{{{text[:3000]}}}" for text in HOSTILE]
    golds = [case["answer"] for case in cases]
    ends, memory = time.monotonic() + FUZZ_S, 0
    while time.monotonic() < ends:
        response, gold = mutated(chance.choice(pool), chance), chance.choice(golds)
        gold = gold if chance.random() < 0.7 else mutated(gold, chance)
        started = time.thread_time()
        try:
            found: Any = reward("", response, gold)
        except Unscorable:
            found = 0.0
        seconds = time.thread_time() - started
        slowest = max(slowest, seconds)
        assert found in (0.0, 1.0)
        assert seconds < LIMIT_S, (gold, response)
        num_done += 1
        if num_done == 20_000:
            memory = resident_bytes()
    print(f"{num_done} answers, slowest {slowest * 1000:.0f} ms")
    assert memory == 0 or resident_bytes() < memory + (64 << 20)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
