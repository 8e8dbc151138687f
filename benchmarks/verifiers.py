"""Our mathematics verifier against math-verify 0.9: agreement with labels, and answers per second.

    VOLLEY_TEST_DATA=DIR .venv/bin/python benchmarks/verifiers.py [agreement] [speed] [cores] [step] [--show 20]
        [--rounds 3] [--responses 10000]

Agreement, the same inputs for both in one run: GSM8K's gold solutions against their own and against another row's
answer; labelled model solutions; cases after the tests of public graders (`verifier_cases.jsonl`, each with its source,
in our own spelling, with their labels, also where we would label them otherwise); our own table with its traps.

Speed: distinct answers in realistic responses, so that no cache helps; one core, warm, CPU seconds, the two in turn;
medians. math-verify runs without its timers, which is its faster way. Two cores: the same work in two processes.

Cores and step, only when they are asked for: the scoring service with one child and two, and a step of a real engine
with and without scoring (`scoring.py`).
"""

import argparse
import json
import logging
import multiprocessing
import os
import random
import re
import statistics
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import scoring
from math_verify import parse
from math_verify import verify as compare

from volley.rewards.math.verifier import verify

Case = tuple[str, str, bool]  # response, gold answer, whether it is right
Verifier = Callable[[str, str], bool]
HERE = Path(__file__).parent
NUMBER = re.compile(r"-?[0-9][0-9,.]*")


def math_verify(response: str, answer: str, timer_s: int | None = 5) -> bool:
    gold = answer if NUMBER.fullmatch(answer) else f"${answer}$"
    try:
        golds, answers = parse(gold, parsing_timeout=timer_s), parse(response, parsing_timeout=timer_s)
        return compare(golds, answers, timeout_seconds=timer_s)
    except Exception:
        return False


def untimed_math_verify(response: str, answer: str) -> bool:
    return math_verify(response, answer, None)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def gold_of(solution: str) -> str:
    return solution.rpartition("####")[2].strip()


def gsm8k(data: Path, shift: int) -> Iterator[Case]:
    for name in ("train.jsonl", "test.jsonl"):
        solutions = [row["answer"] for row in lines(data / name)]
        for place, solution in enumerate(solutions):
            answer = gold_of(solutions[(place + shift) % len(solutions)])
            is_right = Fraction(answer.replace(",", "")) == Fraction(gold_of(solution).replace(",", ""))
            yield solution, answer, is_right


def model_solutions(data: Path) -> Iterator[Case]:
    for row in lines(data / "model_solutions.jsonl"):
        for solution in row.values():
            if isinstance(solution, dict):
                yield solution["solution"], row["ground_truth"].rpartition("A: ")[2], solution["is_correct"]


def sets_of_cases() -> Iterator[tuple[str, list[Case]]]:
    root = os.environ.get("VOLLEY_TEST_DATA")
    if root is None:
        print("VOLLEY_TEST_DATA is not set: GSM8K is left out", flush=True)
    else:
        data = Path(root) / "gsm8k"
        yield "GSM8K, own answers", list(gsm8k(data, 0))
        yield "GSM8K, shuffled answers", list(gsm8k(data, 1))
        yield "GSM8K, model solutions", list(model_solutions(data))
    public = lines(HERE / "verifier_cases.jsonl")
    for source in dict.fromkeys(row["source"] for row in public):
        rows = [row for row in public if row["source"] == source]
        yield source, [(row["response"], row["answer"], row["is_correct"]) for row in rows]
    own = lines(HERE.parent / "tests" / "rewards" / "math_cases.jsonl")
    for name, is_trap in (("own table, right answers", False), ("own table, traps", True)):
        rows = [row for row in own if (row["verdict"] != "right") == is_trap]
        yield name, [(row["response"], row["answer"], not is_trap) for row in rows]


def agreement(show: int) -> None:
    totals = [0, 0, 0]
    print(f"{'cases':50} {'number':>7} {'volley':>7} {'math-verify':>11}")
    disagreements: list[str] = []
    for name, cases in sets_of_cases():
        ours = [verify(response, answer) == is_right for response, answer, is_right in cases]
        theirs = [math_verify(response, answer) == is_right for response, answer, is_right in cases]
        numbers = (len(cases), sum(ours), sum(theirs))
        totals = [total + number for total, number in zip(totals, numbers, strict=True)]
        print(f"{name[:50]:50} {numbers[0]:7} {numbers[1]:7} {numbers[2]:11}", flush=True)
        wrong = [case for case, is_ours in zip(cases, ours, strict=True) if not is_ours]
        disagreements += [f"  {name}: {answer!r} {response[-80:]!r} is {label}" for response, answer, label in wrong]
    print(f"{'sum':50} {totals[0]:7} {totals[1]:7} {totals[2]:11}")
    print(f"{len(disagreements)} labels that we do not agree with:" if disagreements else "")
    print("\n".join(disagreements[:show]), flush=True)


def reasoning(chance: random.Random, size: int) -> str:
    """Text with numbers and formulas in it, `size` characters."""
    sentences = [
        "First we note that the total must be {0} + {1} = {2}, because each of them counts once.",
        "Therefore $x = \\frac{{{0}}}{{{1}}}$ and the other root is ${2}$.",
        "She buys {0} boxes of {1} apples, which makes {2} in all.",
        "Substituting $y = {0}x + {1}$ into the first equation gives ${2}x^2 - {0} = 0$.",
    ]
    parts: list[str] = []
    while sum(map(len, parts)) < size:
        numbers = [chance.randrange(2, 1000) for _ in range(3)]
        parts.append(chance.choice(sentences).format(*numbers))
    return "\n".join(parts)


def integers(chance: random.Random) -> Case:
    number = chance.randrange(10**6)
    given = number + chance.randrange(2)
    return f"{reasoning(chance, 400)}\nThe answer is \\boxed{{{given}}}.", str(number), given == number


def fractions(chance: random.Random) -> Case:
    above, below, factor = chance.randrange(1, 10**4), chance.randrange(2, 10**4), chance.randrange(1, 9)
    given = above + chance.randrange(2)
    box = f"\\boxed{{\\frac{{{given * factor}}}{{{below * factor}}}}}"
    return f"{reasoning(chance, 400)}\nThe answer is ${box}$.", f"\\frac{{{above}}}{{{below}}}", given == above


def symbolic(chance: random.Random) -> Case:
    a, b, c = (chance.randrange(2, 40) for _ in range(3))
    off = chance.randrange(2)
    given, gold = chance.choice(
        [
            (f"(x+{a})(x+{b})", f"x^2+{a + b + off}x+{a * b}"),
            (f"{a}\\sqrt{{{b * b * 3}}}+{c}\\pi", f"{c + off}\\pi+{a * b}\\sqrt{{3}}"),
            (f"\\frac{{x}}{{{a}}}+\\frac{{{b}}}{{{c}}}", f"\\frac{{{c}x+{a * b + off}}}{{{a * c}}}"),
            (f"{2 * a}\\sin({b}x)\\cos({b}x)", f"{a + off}\\sin({2 * b}x)"),
            (f"\\left({a}, \\frac{{\\sqrt{{{b}}}}}{{{c}}}\\right)", f"({a + off}, \\frac{{{b}}}{{{c}\\sqrt{{{b}}}}})"),
        ]
    )
    return f"{reasoning(chance, 400)}\nThe answer is $\\boxed{{{given}}}$.", gold, not off


def long_response(chance: random.Random) -> Case:
    number = chance.randrange(10**6)
    given = number + chance.randrange(2)
    return f"{reasoning(chance, 30_000)}\nThe answer is \\boxed{{{given}}}.", str(number), given == number


KINDS = {
    "integers": (integers, 4000),
    "fractions": (fractions, 2000),
    "symbolic": (symbolic, 300),
    "30 kB responses": (long_response, 400),
}


def rate(verifier: Verifier, cases: list[Case]) -> tuple[float, int]:
    """Answers per CPU second, and how many labels it agrees with."""
    started = time.process_time()
    num_right = sum(verifier(response, answer) == is_right for response, answer, is_right in cases)
    return len(cases) / (time.process_time() - started), num_right


def wall_rate(cases: list[Case], num_processes: int) -> float:
    """Answers per second of that many processes with `cases` each."""
    with multiprocessing.get_context("fork").Pool(num_processes) as pool:
        pool.map(num_agreeing, [cases[:20]] * num_processes, chunksize=1)
        started = time.perf_counter()
        pool.map(num_agreeing, [cases] * num_processes, chunksize=1)
        return num_processes * len(cases) / (time.perf_counter() - started)


def num_agreeing(cases: list[Case]) -> int:
    return sum(verify(response, answer) == is_right for response, answer, is_right in cases)


def speed(rounds: int) -> None:
    print(f"\n{'answers/s on one core':24} {'volley':>9} {'math-verify':>12} {'ratio':>7}   labels agreed with, of")
    for name, (make, number) in KINDS.items():
        ours, theirs, agreed = [], [], (0, 0)
        for round_index in range(rounds + 1):
            chance = random.Random(f"{name} {round_index}")
            cases = [make(chance) for _ in range(number if round_index else 20)]
            (our_rate, our_agreed), (their_rate, their_agreed) = rate(verify, cases), rate(untimed_math_verify, cases)
            if round_index:  # the first round warms up
                ours.append(our_rate)
                theirs.append(their_rate)
                agreed = (agreed[0] + our_agreed, agreed[1] + their_agreed)
        our, their = statistics.median(ours), statistics.median(theirs)
        labels = f"{agreed[0]} and {agreed[1]} of {number * rounds}"
        print(f"{name:24} {our:9,.0f} {their:12,.0f} {our / their:7.1f}   {labels}", flush=True)
    chance = random.Random("cores")
    cases = [make(chance) for make, _ in KINDS.values() for _ in range(1500)]
    one, two = (statistics.median(wall_rate(cases, number) for _ in range(rounds)) for number in (1, 2))
    print(f"\nall kinds in turn, wall clock: one process {one:,.0f}/s, two {two:,.0f}/s, ratio {two / one:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=["agreement", "speed"])
    parser.add_argument("--show", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--responses", type=int, default=10_000, help="of a step")
    options = parser.parse_args()
    logging.disable(logging.ERROR)  # math-verify warns that its timers are off
    if "agreement" in options.parts:
        agreement(options.show)
    if "speed" in options.parts:
        speed(options.rounds)
    if "cores" in options.parts:
        scoring.cores(symbolic, options.rounds, wall_rate)
    if "step" in options.parts:
        scoring.step([*[integers] * 8, fractions, symbolic], options.rounds, options.responses)


if __name__ == "__main__":
    main()
