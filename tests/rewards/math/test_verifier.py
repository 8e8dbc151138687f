"""Verdicts: right and wrong answers, quick verdicts, real data, and arbitrary text."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rewards.math.builders import LATEX_LIKE, boxed
from volley.rewards.item import Unscorable
from volley.rewards.math.verifier import equivalent, extract, quick_reward, reward, verify

RIGHT = [
    # plain numbers
    ("18", "18"),
    ("$18$", "18"),
    (r"\(18\)", "18"),
    ("#### 18", "18"),
    ("so\nA: 18", "18"),
    ("She has 16 - 3 = 13 eggs.\n\n13", "13"),
    ("The answer is 18", "18."),
    ("The answer is 18. That was easy.", "18"),
    ("The answer is 18 because 9 * 2 = 18", "18"),
    ("**Answer:** 18", "18"),
    ("The final answer is:\n\n$$18$$", "18"),
    ("answer: 18 dollars", "18"),
    (r"\boxed{18.00}", "18"),
    (r"\boxed{$18}", "18"),
    (r"\boxed{18} dollars", "18"),
    ("The answer is $1,200.", "1200"),
    ("#### 1{,}200", "1,200"),
    (r"\boxed{1\,200}", "1200"),
    ("\\boxed{\N{MINUS SIGN}5}", "-5"),
    ("The answer is -$5.", "-5"),
    (r"\boxed{2.5e-3}", "0.0025"),
    (r"\boxed{2.5\times10^{-3}}", "0.0025"),
    (r"\boxed{2^{10}}", "1024"),
    (r"\boxed{١٨}", "18"),
    # fractions, percentages, units
    (r"\boxed{\frac12}", "0.5"),
    (r"\boxed{\dfrac{2}{4}}", "1/2"),
    (r"\boxed{-\frac{3}{4}}", "-0.75"),
    (r"\boxed{3\frac{1}{4}}", "3.25"),
    (r"\boxed{3 1/4}", "13/4"),
    (r"\boxed{\frac{1}{2^{98}}}", "1/2^{98}"),
    (r"\boxed{50\%}", "50"),
    (r"\boxed{50\%}", "0.5"),
    (r"\boxed{45^\circ}", "45"),
    (r"\boxed{5\text{ cm}}", "5"),
    (r"\boxed{5\text{ cm}}", "5 centimeters"),
    # where the answer is found
    ("<answer>85</answer>", "85"),
    ("<think>7</think><answer>85</answer>", "85"),
    ("<answer>85", "85"),
    ("<answer>84</answer> no: \\boxed{85}", "85"),
    (r"\boxed{84}, no, \boxed{85}", "85"),
    (r"The answer is 84. #### 85", "85"),
    (r"\boxed{1} and \boxed{2}", "1,2"),
    (r"\boxed{1}, \boxed{2}, and \boxed{3}", "1,2,3"),
    # words and choices
    (r"\boxed{\text{(C)}}", "C"),
    ("The answer is (B).", "B"),
    (r"\boxed{Paris}", "paris"),
    # equations
    (r"\boxed{x=5}", "5"),
    (r"\boxed{5}", "x=5"),
    (r"\boxed{3 + 4 = 7}", "7"),
    ("47+38=85", "85"),
    (r"\boxed{y = 2x+1}", "2x+1"),
    (r"\boxed{f(x)=x^2}", "x^2"),
    # formulas
    (r"\boxed{\frac{\sqrt{2}}{2}}", r"\frac{1}{\sqrt2}"),
    (r"\boxed{(x+1)^2}", "x^2+2x+1"),
    (r"\boxed{2\sqrt{3}+1}", r"1+2\sqrt{3}"),
    (r"\boxed{sqrt(2)}", r"\sqrt{2}"),
    (r"\boxed{2π}", r"2\pi"),
    (r"\boxed{\log_2 8}", "3"),
    (r"\boxed{10!}", "3628800"),
    (r"\boxed{\binom{5}{2}}", "10"),
    (r"\boxed{e^{x^2}}", "e^{x^2}"),
    (r"\boxed{\frac{\pi}{3}}", "1.047198"),
    (r"\boxed{3\pm\sqrt{2}}", r"3+\sqrt2, 3-\sqrt2"),
    (r"\boxed{\{1,2\}}", r"\{2,1\}"),
    (r"\boxed{(1,2)}", "(1, 2)"),
    (r"\boxed{\left(\frac{1}{2}, 3\right)}", "(0.5, 3)"),
    (r"\boxed{[0,\infty)}", r"[0,\infty)"),
    (r"\boxed{(-\infty, 2) \cup (3, \infty)}", r"(-\infty,2)\cup(3,\infty)"),
    (r"\boxed{5 \ge x}", r"x \le 5"),
    (r"\boxed{\begin{pmatrix}1&2\\3&4\end{pmatrix}}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"),
]
WRONG = [
    # no answer, or not the last one
    ("", "18"),
    ("so she sells 18 eggs and is happy about it. What a nice farm this one is, with many ducks.", "18"),
    ("I think 18 and 19", "18"),
    (r"\boxed{18} no \boxed{19}", "18"),
    (r"\boxed{18}\boxed{19}", "18"),
    (r"\boxed{}", "18"),
    (r"\boxed{18", "18"),
    ("#### 18\n\\boxed{", "18"),
    ("The answer is 18. \\boxed{}", "18"),
    ("The answer is 18 or 19", "18"),
    ("The answer is not 73", "73"),
    (r"\boxed{5 or 6}", "5"),
    ("<answer>17</answer><answer>18</answer>", "18"),
    ("A: 5\nB: 6\n", "6"),
    # thinking
    (r"<think>\boxed{18}", "18"),
    (r"<think>\boxed{18}</think>", "18"),
    ("<think>a</think>18<think>", "18"),
    (r"<think>\boxed{18}</think>The answer is 19", "18"),
    # nearly the same number
    (r"\boxed{18}", "18000"),
    (r"\boxed{1/2^{98}}", "1/2^{99}"),
    (r"\boxed{\frac{\pi}{2^{98}}}", r"\frac{\pi}{2^{99}}"),
    (r"\boxed{0.3333333333}", "1/3"),
    (r"\boxed{3.14159265358979}", r"\pi"),
    (r"\boxed{1000000.0000001}", "1000000"),
    (r"\boxed{5000\%}", "0.5"),
    (r"\boxed{12}", "1,2"),
    (r"\boxed{1,200}", "1.2"),
    (r"\boxed{1 8}", "18"),
    (r"\boxed{1\$8}", "18"),
    (r"\boxed{5 million}", "5"),
    (r"\boxed{5 cm}", "5 m"),
    (r"\boxed{5 cm^2}", "5 cm"),
    ("The answer is 5 cents", "$5"),
    # nearly the same formula
    (r"\boxed{2t}", "2"),
    (r"\boxed{2}", "2t"),
    (r"\boxed{2x=5}", "5"),
    (r"\boxed{3+1=5}", "5"),
    (r"\boxed{y=5}", "x=5"),
    (r"\boxed{(2,1)}", "(1,2)"),
    (r"\boxed{(0,1)}", "[0,1]"),
    (r"\boxed{1,2}", "1,3"),
    (r"\boxed{1,2}", "1"),
    (r"\boxed{x<5}", r"x\le 5"),
    (r"\boxed{1:2}", "2:1"),
    (r"\boxed{\begin{pmatrix}1&3\\2&4\end{pmatrix}}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    (r"\boxed{\sum_{i=1}^{3} i}", "6"),
    (r"\boxed{\int_0^1 2x dx}", "1"),
    ("47+38", "85"),
    ("#### 6*7", "42"),
    (r"\boxed{(16-3-4)*2}", "18"),
    (r"\boxed{3^{100}-3^{100}+7}", "7"),
    (r"\boxed{|\log(0)|}", r"\pi"),
    (r"\boxed{pairs}", "Paris"),
    (r"\boxed{D}", "C"),
    # an unreadable gold answer
    ("18", ""),
    (r"\boxed{}", ""),
    (r"\boxed{\frac{1}{}", r"\frac{1}{"),
]


@pytest.mark.parametrize(("response", "answer"), RIGHT)
def test_right_answers(response: str, answer: str) -> None:
    assert verify(response, answer)


@pytest.mark.parametrize(("response", "answer"), WRONG)
def test_wrong_answers(response: str, answer: str) -> None:
    assert not verify(response, answer)


def test_numbers_and_words_are_decided_quickly() -> None:
    assert quick_reward("", "The answer is 18", "18") == 1.0
    assert quick_reward("", "The answer is x + 18", "18") == 0.0
    assert quick_reward("", "The answer is Rome", "Paris") == 0.0
    assert quick_reward("", r"The answer is \sqrt{324}", "18") is None


@pytest.mark.parametrize(
    "gold", [r"\frac{\sqrt{3}}{2}", "x^2+1", r"(-\infty, 2]", r"5\sqrt{2}\text{ cm}", r"3\pm\sqrt{2}"]
)
def test_identical_formulas_are_decided_quickly(gold: str) -> None:
    assert quick_reward("", f"so ${gold}$ it is: $\\boxed{{{gold}}}$", gold) == 1.0
    assert quick_reward("", f"so $\\boxed{{ {gold.replace('frac', 'dfrac')} }}$.", gold) == 1.0


@settings(max_examples=300, deadline=None, derandomize=True)
@given(LATEX_LIKE, LATEX_LIKE, st.booleans())
def test_quick_verdicts_agree_with_full_ones(text: str, other: str, is_same: bool) -> None:
    response, gold = boxed(text), text if is_same else other
    try:
        quick = quick_reward("", response, gold)
    except Unscorable:
        return
    assert quick is None or quick == reward("", response, gold)


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("volley.rewards.math", "sympy math_verify torch transformers mpmath numpy"),
        ("volley.rewards.scoring.scorer", "sympy math_verify torch transformers mpmath"),
    ],
)
def test_imports_are_light(module: str, heavy: str) -> None:
    program = f"import sys, {module}; print(*set({heavy.split()}) & set(sys.modules))"
    child = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, text=True, check=True)
    assert child.stdout.split() == []


def test_gold_answers_of_gsm8k_equal_themselves(gsm8k_each: Path) -> None:
    started, count = time.process_time(), 0
    for name in ("train.jsonl", "test.jsonl"):
        for line in (gsm8k_each / name).read_text().splitlines():
            solution = json.loads(line)["answer"]
            gold = solution.rpartition("####")[2].strip()
            assert quick_reward("", solution, gold) == 1.0, gold
            assert quick_reward("", f"<think>7</think>\\boxed{{{gold}}}", gold) == 1.0
            assert quick_reward("", solution, f"{int(gold.replace(',', '')) + 1}") == 0.0
            count += 1
    assert count in (64 + 40, 7473 + 1319)
    assert time.process_time() - started < 10


def test_agrees_with_the_labels_of_real_model_solutions(gsm8k_each: Path) -> None:
    count = 0
    for line in (gsm8k_each / "model_solutions.jsonl").read_text().splitlines():
        row = json.loads(line)
        gold = row["ground_truth"].rpartition("A: ")[2]
        for solution in (value for value in row.values() if isinstance(value, dict)):
            assert verify(solution["solution"], gold) == solution["is_correct"], (gold, solution["solution"][-80:])
            count += 1
    assert count in (4 * 40, 4 * 660)


@settings(max_examples=300, deadline=2000)
@given(st.text(max_size=400), st.text(max_size=60))
def test_never_raises_on_arbitrary_text(text: str, other: str) -> None:
    assert verify(text, other) in (True, False)
    assert equivalent(text, other) in (True, False)
    extracted = extract(text)
    assert extracted is None or 0 < len(extracted) <= 256


@settings(max_examples=300, deadline=None, derandomize=True)
@given(LATEX_LIKE, LATEX_LIKE)
def test_never_raises_on_text_like_latex(text: str, other: str) -> None:
    assert verify(boxed(text), other) in (True, False)
