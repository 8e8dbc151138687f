"""The table of labelled answers, half of them traps; and what holds for all answers: reflexive, symmetric."""

import asyncio
import json
import multiprocessing
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volley.rewards.config import RewardConfig, ScorerConfig
from volley.rewards.item import Unscorable
from volley.rewards.math.answers.normalization import normalize
from volley.rewards.math.answers.parsing import parse_answer
from volley.rewards.math.verifier import equivalent, extract, quick_reward, reward, verify
from volley.rewards.scoring.scorer import Scorer
from volley.rollout.types import Completion, Prompt, Score, as_token_ids

CASES: list[dict[str, str]] = [
    json.loads(line) for line in Path(__file__).with_name("math_cases.jsonl").read_text().splitlines()
]


def verdict(answer: str, response: str) -> str:
    try:
        value = reward("", response, answer)
    except Unscorable:
        return "unscorable"
    if value:
        return "right"
    return "none" if extract(response) is None else "wrong"


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['answer'][:20]}|{case['response'][:40]}".encode())
def test_case(case: dict[str, str]) -> None:
    assert verdict(case["answer"], case["response"]) == case["verdict"], case["why"]
    assert verify(case["response"], case["answer"]) == (case["verdict"] == "right")


def test_the_table_is_large_and_half_of_it_are_traps() -> None:
    counts = Counter(case["verdict"] for case in CASES)
    assert len({(case["answer"], case["response"]) for case in CASES}) == len(CASES) >= 300
    assert counts["right"] <= len(CASES) / 2
    assert set(counts) == {"right", "wrong", "none", "unscorable"}


def test_what_equals_the_gold_answer_is_the_same_the_other_way_round() -> None:
    """Where no decimal is involved, which may be a rounded one, and no 1:15, which the gold answer makes a time."""
    for case in CASES:
        found = extract(case["response"])
        if found is None or case["verdict"] not in ("right", "wrong") or set(".:") & set(found + case["answer"]):
            continue
        assert equivalent(found, case["answer"]) == equivalent(case["answer"], found), case


def test_verdicts_are_the_same_in_threads() -> None:
    with ThreadPoolExecutor(8) as threads:
        verdicts = list(threads.map(lambda case: verdict(case["answer"], case["response"]), CASES))
    assert verdicts == [case["verdict"] for case in CASES]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_verdicts_are_the_same_in_another_process(method: str) -> None:
    with multiprocessing.get_context(method).Pool(2) as processes:
        verdicts = processes.starmap(verdict, [(case["answer"], case["response"]) for case in CASES], chunksize=100)
    assert verdicts == [case["verdict"] for case in CASES]


def test_verdicts_are_the_same_on_an_event_loop_and_through_the_scorer() -> None:
    """What is decided in the caller and what in a child."""

    async def main() -> tuple[list[str], list[Score]]:
        here = [verdict(case["answer"], case["response"]) for case in CASES]
        async with Scorer([RewardConfig("math")], ScorerConfig(workers=2)) as scorer:
            completions = [Completion.single((), (), case["response"], "stop", 0, 0) for case in CASES]
            prompts = [Prompt(0, 0, "", as_token_ids(()), case["answer"]) for case in CASES]
            return here, list(await asyncio.gather(*map(scorer.score, prompts, completions)))

    here, scores = asyncio.run(main())
    expected = [case["verdict"] for case in CASES]
    assert here == expected
    for case, score in zip(CASES, scores, strict=True):
        kind = "none" if score.is_answerless else "right" if score.accuracy == 1.0 else "wrong"
        assert ("unscorable" if score.unscorable else kind) == case["verdict"], (case, score)


def test_what_is_quick_is_the_same() -> None:
    num_quick = 0
    for case in CASES:
        for response in (case["response"], case["answer"], f"\\boxed{{{case['answer']}}}"):
            try:
                quick = quick_reward("", response, case["answer"])
            except Unscorable:
                continue
            num_quick += quick is not None
            assert quick is None or quick == reward("", response, case["answer"]), (case, response)
    assert num_quick > 2 * len(CASES)


@pytest.mark.parametrize(
    ("answer", "response", "tolerance", "is_right"),
    [
        ("3.14", "3.1", 0.05, True),
        ("3.14", "3.0", 0.05, False),
        ("18", "18.1", 0.1, True),
        ("18", "18.11", 0.1, False),
        (r"\pi", "3.1416", 1e-4, True),
        ("(1,2)", "(1.01,1.99)", 0.01, True),
        ("18", "19", 0, False),
    ],
)
def test_a_tolerance_that_the_row_states(answer: str, response: str, tolerance: float, is_right: bool) -> None:
    assert verify(f"\\boxed{{{response}}}", answer, tolerance) == is_right
    assert reward("", f"\\boxed{{{response}}}", answer, tolerance=tolerance) == is_right


def test_a_tolerance_that_is_no_number_makes_the_row_unscorable() -> None:
    with pytest.raises(Unscorable, match="tolerance 'a little'"):
        reward("", "The answer is 18", "18", tolerance="a little")  # type: ignore[arg-type]


LATEX_LIKE = st.text(alphabet="0123456789xyei+-*/^=_(){}[],. \\$%!<>|", max_size=30)
_TOKENS = r"""
\frac \sqrt \pi \pm \cup \infty \sin \log_2 \binom \{ \} \left( \right) { } ( ) [ ] 1 2 30 0.5 x y i e
+ - * / ^ _ , = < \le \in \text{cm} cm % \circ : and or PM ! |
"""
WORDS = st.sampled_from(_TOKENS.split())
FORMULA_LIKE = st.lists(WORDS, max_size=12).map(" ".join)
NUMBER = st.one_of(st.integers(-9, 9).map(str), st.sampled_from(["x", "y", r"\pi", r"\sqrt{2}", "e"]))
FORMULA = st.recursive(
    NUMBER,
    lambda inner: st.one_of(
        st.builds("({}+{})".format, inner, inner),
        st.builds("({}-{})".format, inner, inner),
        st.builds(r"{}\cdot {}".format, inner, inner),
        st.builds(r"\frac{{{}}}{{{}}}".format, inner, inner),
        st.builds("({})^2".format, inner),
        st.builds(r"\sqrt{{{}}}".format, inner),
        st.builds(r"\sin({})".format, inner),
    ),
    max_leaves=8,
)


@settings(max_examples=400, deadline=2000)
@given(st.one_of(st.text(max_size=60), LATEX_LIKE, FORMULA_LIKE, FORMULA))
def test_reflexive(text: str) -> None:
    assert equivalent(text, text) == parse_answer(normalize(text)).is_readable


@settings(max_examples=400, deadline=2000)
@given(st.one_of(*[st.tuples(kind, kind) for kind in (LATEX_LIKE, FORMULA_LIKE, FORMULA)]))
def test_symmetric(pair: tuple[str, str]) -> None:
    one, other = (text.replace(".", "") for text in pair)
    assert equivalent(one, other) == equivalent(other, one)


@settings(max_examples=200, deadline=2000)
@given(FORMULA, FORMULA)
def test_sums_and_products_commute(one: str, other: str) -> None:
    if parse_answer(normalize(f"({one})+({other})")).is_readable:
        assert equivalent(f"({one})+({other})", f"({other})+({one})")
        assert equivalent(rf"({one}) \cdot ({other})", rf"({other}) \cdot ({one})")
        assert not equivalent(f"({one})+({other})", f"({other})+({one})+1")
