"""The labelled cases, half of them traps, and properties of all answers: reflexive, symmetric, commutative."""

import asyncio
import multiprocessing
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rewards.math.builders import CASES, FORMULA, FORMULA_LIKE, LATEX_LIKE, math_scorer, math_scores
from volley.rewards.item import Unscorable
from volley.rewards.math.answers.normalization import normalize
from volley.rewards.math.answers.parsing import parse_answer
from volley.rewards.math.verifier import equivalent, extract, quick_reward, reward, verify
from volley.rollout.types import Score


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


def test_at_least_half_of_the_cases_are_traps() -> None:
    counts = Counter(case["verdict"] for case in CASES)
    assert len({(case["answer"], case["response"]) for case in CASES}) == len(CASES) >= 300
    assert counts["right"] <= len(CASES) / 2
    assert set(counts) == {"right", "wrong", "none", "unscorable"}


def test_equivalence_of_the_cases_is_symmetric() -> None:
    """Except decimals, which only a gold answer rounds, and 1:15, which is a time only if the gold answer is one."""
    for case in CASES:
        extracted = extract(case["response"])
        if (
            extracted is None
            or case["verdict"] not in ("right", "wrong")
            or set(".:") & set(extracted + case["answer"])
        ):
            continue
        assert equivalent(extracted, case["answer"]) == equivalent(case["answer"], extracted), case


def test_verdicts_are_the_same_in_threads() -> None:
    with ThreadPoolExecutor(8) as threads:
        verdicts = list(threads.map(lambda case: verdict(case["answer"], case["response"]), CASES))
    assert verdicts == [case["verdict"] for case in CASES]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_verdicts_are_the_same_in_another_process(method: str) -> None:
    with multiprocessing.get_context(method).Pool(2) as processes:
        verdicts = processes.starmap(verdict, [(case["answer"], case["response"]) for case in CASES], chunksize=100)
    assert verdicts == [case["verdict"] for case in CASES]


def test_verdicts_are_the_same_on_an_event_loop_and_in_the_scorer() -> None:
    """The scorer decides some cases in the caller and some in a child."""

    async def main() -> tuple[list[str], list[Score]]:
        here = [verdict(case["answer"], case["response"]) for case in CASES]
        async with math_scorer(workers=2) as scorer:
            return here, await math_scores(scorer, [(case["response"], case["answer"]) for case in CASES])

    here, scores = asyncio.run(main())
    expected = [case["verdict"] for case in CASES]
    assert here == expected
    for case, score in zip(CASES, scores, strict=True):
        kind = "none" if score.is_answerless else "right" if score.accuracy == 1.0 else "wrong"
        assert ("unscorable" if score.unscorable else kind) == case["verdict"], (case, score)


def test_quick_verdicts_agree_with_full_ones() -> None:
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
def test_tolerance(answer: str, response: str, tolerance: float, is_right: bool) -> None:
    assert verify(f"\\boxed{{{response}}}", answer, tolerance) == is_right
    assert reward("", f"\\boxed{{{response}}}", answer, tolerance=tolerance) == is_right


def test_a_tolerance_that_is_not_a_number_makes_the_row_unscorable() -> None:
    with pytest.raises(Unscorable, match="tolerance 'a little'"):
        reward("", "The answer is 18", "18", tolerance="a little")  # type: ignore[arg-type]


@settings(max_examples=400, deadline=2000)
@given(st.one_of(st.text(max_size=60), LATEX_LIKE, FORMULA_LIKE, FORMULA))
def test_equivalence_is_reflexive(text: str) -> None:
    assert equivalent(text, text) == parse_answer(normalize(text)).is_readable


@settings(max_examples=400, deadline=2000)
@given(st.one_of(*[st.tuples(kind, kind) for kind in (LATEX_LIKE, FORMULA_LIKE, FORMULA)]))
def test_equivalence_is_symmetric(pair: tuple[str, str]) -> None:
    one, other = (text.replace(".", "") for text in pair)
    assert equivalent(one, other) == equivalent(other, one)


@settings(max_examples=200, deadline=2000)
@given(FORMULA, FORMULA)
def test_sums_and_products_commute(one: str, other: str) -> None:
    if parse_answer(normalize(f"({one})+({other})")).is_readable:
        assert equivalent(f"({one})+({other})", f"({other})+({one})")
        assert equivalent(rf"({one}) \cdot ({other})", rf"({other}) \cdot ({one})")
        assert not equivalent(f"({one})+({other})", f"({other})+({one})+1")
