"""Compares our math verifier with math-verify 0.9: agreement with labels, and answers per second.

    VOLLEY_TEST_DATA=DIR .venv/bin/python benchmarks/verifiers.py [agreement] [speed] [cores] [step] [--show 20]
        [--rounds 3] [--responses 10000]

agreement: how often each verifier agrees with the labels of the same cases.

- GSM8K's gold solutions, against their own answer and against the answer of another row
- labelled model solutions for GSM8K
- cases modelled on the tests of public graders (`verifier_cases.jsonl`). Each names its source and has the label of
  that source, even where we would label it differently. The texts are our own.
- our own labelled cases, half of them traps

speed: answers per CPU second on one warm core, as medians over rounds in which the two verifiers take turns. All
answers are distinct, in realistic responses, so that no cache helps. math-verify runs without its timers, because it is
faster without them. The last line is our verifier alone: the same work in one process and in two.

cores, step (only if named): the scoring service with one child and with two, and a training step of a real engine with
and without scoring (`scoring.py`).
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
from math_verify import verify as math_verify_compare

from volley.rewards.math.verifier import verify

Case = tuple[str, str, bool]
"""A response, a gold answer, and whether the response is right."""
Verifier = Callable[[str, str], bool]
HERE = Path(__file__).parent
NUMBER = re.compile(r"-?[0-9][0-9,.]*")


def math_verify(response: str, answer: str, timer_s: int | None = 5) -> bool:
    """Return the verdict of math-verify; False if it raises. timer_s: its time limits, None for none."""
    gold = answer if NUMBER.fullmatch(answer) else f"${answer}$"
    try:
        golds, answers = parse(gold, parsing_timeout=timer_s), parse(response, parsing_timeout=timer_s)
        return math_verify_compare(golds, answers, timeout_seconds=timer_s)
    except Exception:
        return False


def untimed_math_verify(response: str, answer: str) -> bool:
    return math_verify(response, answer, None)


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def gold_of(solution: str) -> str:
    return solution.rpartition("####")[2].strip()


def gsm8k(data: Path, shift: int) -> Iterator[Case]:
    """Yield every gold solution with the answer of the row that is `shift` rows later."""
    for name in ("train.jsonl", "test.jsonl"):
        solutions = [row["answer"] for row in read_jsonl(data / name)]
        for index, solution in enumerate(solutions):
            answer = gold_of(solutions[(index + shift) % len(solutions)])
            is_right = Fraction(answer.replace(",", "")) == Fraction(gold_of(solution).replace(",", ""))
            yield solution, answer, is_right


def model_solutions(data: Path) -> Iterator[Case]:
    for row in read_jsonl(data / "model_solutions.jsonl"):
        for solution in row.values():
            if isinstance(solution, dict):
                yield solution["solution"], row["ground_truth"].rpartition("A: ")[2], solution["is_correct"]


def labelled_sets() -> Iterator[tuple[str, list[Case]]]:
    root = os.environ.get("VOLLEY_TEST_DATA")
    if root is None:
        print("VOLLEY_TEST_DATA is not set: skipping GSM8K", flush=True)
    else:
        data = Path(root) / "gsm8k"
        yield "GSM8K, own answers", list(gsm8k(data, 0))
        yield "GSM8K, shuffled answers", list(gsm8k(data, 1))
        yield "GSM8K, model solutions", list(model_solutions(data))
    public = read_jsonl(HERE / "verifier_cases.jsonl")
    for source in dict.fromkeys(row["source"] for row in public):
        rows = [row for row in public if row["source"] == source]
        yield source, [(row["response"], row["answer"], row["is_correct"]) for row in rows]
    own = read_jsonl(HERE.parent / "tests" / "rewards" / "math" / "math_cases.jsonl")
    for name, is_trap in (("own cases, right answers", False), ("own cases, traps", True)):
        rows = [row for row in own if (row["verdict"] != "right") == is_trap]
        yield name, [(row["response"], row["answer"], not is_trap) for row in rows]


def agreement(show: int) -> None:
    """Print how often each verifier agrees with the labels, and `show` of our disagreements."""
    totals = [0, 0, 0]
    print(f"{'cases':50} {'number':>7} {'volley':>7} {'math-verify':>11}")
    disagreements: list[str] = []
    for name, cases in labelled_sets():
        ours = [verify(response, answer) == is_right for response, answer, is_right in cases]
        theirs = [math_verify(response, answer) == is_right for response, answer, is_right in cases]
        numbers = (len(cases), sum(ours), sum(theirs))
        totals = [total + number for total, number in zip(totals, numbers, strict=True)]
        print(f"{name[:50]:50} {numbers[0]:7} {numbers[1]:7} {numbers[2]:11}", flush=True)
        wrong = [case for case, is_ours in zip(cases, ours, strict=True) if not is_ours]
        disagreements += [f"  {name}: {answer!r} {response[-80:]!r} is {label}" for response, answer, label in wrong]
    print(f"{'sum':50} {totals[0]:7} {totals[1]:7} {totals[2]:11}")
    print(f"{len(disagreements)} labels that our verifier disagrees with:" if disagreements else "")
    print("\n".join(disagreements[:show]), flush=True)


def reasoning(rng: random.Random, size: int) -> str:
    """Return at least `size` characters of text with numbers and formulas."""
    sentences = [
        "First we note that the total must be {0} + {1} = {2}, because each of them counts once.",
        "Therefore $x = \\frac{{{0}}}{{{1}}}$ and the other root is ${2}$.",
        "She buys {0} boxes of {1} apples, which makes {2} in all.",
        "Substituting $y = {0}x + {1}$ into the first equation gives ${2}x^2 - {0} = 0$.",
    ]
    parts: list[str] = []
    while sum(map(len, parts)) < size:
        numbers = [rng.randrange(2, 1000) for _ in range(3)]
        parts.append(rng.choice(sentences).format(*numbers))
    return "\n".join(parts)


def integers(rng: random.Random) -> Case:
    number = rng.randrange(10**6)
    given = number + rng.randrange(2)
    return f"{reasoning(rng, 400)}\nThe answer is \\boxed{{{given}}}.", str(number), given == number


def fractions(rng: random.Random) -> Case:
    numerator, denominator, factor = rng.randrange(1, 10**4), rng.randrange(2, 10**4), rng.randrange(1, 9)
    given = numerator + rng.randrange(2)
    box = f"\\boxed{{\\frac{{{given * factor}}}{{{denominator * factor}}}}}"
    gold = f"\\frac{{{numerator}}}{{{denominator}}}"
    return f"{reasoning(rng, 400)}\nThe answer is ${box}$.", gold, given == numerator


def symbolic(rng: random.Random) -> Case:
    a, b, c = (rng.randrange(2, 40) for _ in range(3))
    off = rng.randrange(2)
    given, gold = rng.choice(
        [
            (f"(x+{a})(x+{b})", f"x^2+{a + b + off}x+{a * b}"),
            (f"{a}\\sqrt{{{b * b * 3}}}+{c}\\pi", f"{c + off}\\pi+{a * b}\\sqrt{{3}}"),
            (f"\\frac{{x}}{{{a}}}+\\frac{{{b}}}{{{c}}}", f"\\frac{{{c}x+{a * b + off}}}{{{a * c}}}"),
            (f"{2 * a}\\sin({b}x)\\cos({b}x)", f"{a + off}\\sin({2 * b}x)"),
            (f"\\left({a}, \\frac{{\\sqrt{{{b}}}}}{{{c}}}\\right)", f"({a + off}, \\frac{{{b}}}{{{c}\\sqrt{{{b}}}}})"),
        ]
    )
    return f"{reasoning(rng, 400)}\nThe answer is $\\boxed{{{given}}}$.", gold, not off


def long_response(rng: random.Random) -> Case:
    number = rng.randrange(10**6)
    given = number + rng.randrange(2)
    return f"{reasoning(rng, 30_000)}\nThe answer is \\boxed{{{given}}}.", str(number), given == number


KINDS = {
    "integers": (integers, 4000),
    "fractions": (fractions, 2000),
    "symbolic": (symbolic, 300),
    "30 kB responses": (long_response, 400),
}


def rate(verifier: Verifier, cases: list[Case]) -> tuple[float, int]:
    """Return answers per CPU second, and the number of labels that the verifier agrees with."""
    started = time.process_time()
    num_right = sum(verifier(response, answer) == is_right for response, answer, is_right in cases)
    return len(cases) / (time.process_time() - started), num_right


def wall_rate(cases: list[Case], num_processes: int) -> float:
    """Return answers per second of several processes with the same cases each."""
    with multiprocessing.get_context("fork").Pool(num_processes) as pool:
        pool.map(num_agreeing, [cases[:20]] * num_processes, chunksize=1)
        started = time.perf_counter()
        pool.map(num_agreeing, [cases] * num_processes, chunksize=1)
        return num_processes * len(cases) / (time.perf_counter() - started)


def num_agreeing(cases: list[Case]) -> int:
    return sum(verify(response, answer) == is_right for response, answer, is_right in cases)


def speed(rounds: int) -> None:
    """Print answers per CPU second of both verifiers by kind of answer, and our speed in two processes."""
    print(f"\n{'answers/s on one core':24} {'volley':>9} {'math-verify':>12} {'ratio':>7}   agreement with the labels")
    for name, (make, number) in KINDS.items():
        ours, theirs, agreed = [], [], (0, 0)
        for round_index in range(rounds + 1):
            rng = random.Random(f"{name} {round_index}")
            cases = [make(rng) for _ in range(number if round_index else 20)]
            (our_rate, our_agreed), (their_rate, their_agreed) = rate(verify, cases), rate(untimed_math_verify, cases)
            if round_index:  # the first round warms up
                ours.append(our_rate)
                theirs.append(their_rate)
                agreed = (agreed[0] + our_agreed, agreed[1] + their_agreed)
        our, their = statistics.median(ours), statistics.median(theirs)
        labels = f"{agreed[0]} and {agreed[1]} of {number * rounds}"
        print(f"{name:24} {our:9,.0f} {their:12,.0f} {our / their:7.1f}   {labels}", flush=True)
    rng = random.Random("cores")
    cases = [make(rng) for make, _ in KINDS.values() for _ in range(1500)]
    one, two = (statistics.median(wall_rate(cases, number) for _ in range(rounds)) for number in (1, 2))
    print(f"\nall kinds mixed, wall clock: one process {one:,.0f}/s, two {two:,.0f}/s, ratio {two / one:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=["agreement", "speed"])
    parser.add_argument("--show", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--responses", type=int, default=10_000, help="responses in the training step")
    options = parser.parse_args()
    logging.disable(logging.ERROR)  # math-verify logs warnings that its timers are off
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
