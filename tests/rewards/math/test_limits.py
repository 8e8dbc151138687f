"""The limits in steps and in seconds on the work for one verdict."""

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.rewards.math.builders import boxed, math_scorer, math_scores
from tests.rewards.math.hostile import SLOW
from tests.rewards.scoring_helpers import children_of
from volley.rewards.config import ScorerConfig
from volley.rewards.item import Unscorable
from volley.rewards.math import verifier as math
from volley.rewards.math.expressions import limits
from volley.rewards.math.expressions.evaluate import evaluate
from volley.rewards.math.expressions.grammar import parse
from volley.rewards.math.expressions.limits import MAX_STEPS, StepLimitError, count_steps, step_limit
from volley.rewards.math.verifier import equivalent, extract, reward, verify
from volley.rollout.types import Score

LIMIT_S = 2.0


@pytest.mark.parametrize(("gold", "given"), SLOW, ids=range(len(SLOW)))
def test_comparisons_of_long_answers_share_one_step_limit(gold: str, given: str) -> None:
    started = time.thread_time()
    assert not equivalent(gold, given)
    assert time.thread_time() - started < LIMIT_S
    assert not verify(boxed(given), gold)


def test_evaluation_beyond_the_step_limit_raises() -> None:
    tree = parse("1")
    assert tree is not None
    with step_limit():
        count_steps(MAX_STEPS)
        with pytest.raises(StepLimitError):
            evaluate(tree)
    assert evaluate(tree)[0] == 1


@pytest.mark.parametrize("limit_s", [0.05, None], ids=["given limit", "default limit"])
def test_time_limit_holds_in_threads_without_step_limit(limit_s: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_STEPS", 10**12)
    (gold, given), options = SLOW[0], {} if limit_s is None else {"limit_s": limit_s}

    def timed_out_verdicts() -> float:
        started = time.thread_time()
        with pytest.raises(Unscorable, match=f"timed out after {limit_s or 2:g} s"):
            reward("", boxed(given), gold, **options)
        seconds = time.thread_time() - started
        if limit_s:
            assert not verify(boxed(given), gold, **options)
            assert not equivalent(gold, given, **options)
        return seconds

    num_threads = 2 if limit_s else 1
    with ThreadPoolExecutor(num_threads) as threads:
        assert max(threads.map(lambda _: timed_out_verdicts(), range(num_threads))) < 1 + (limit_s or 2)
    assert verify(r"\boxed{\frac{\sqrt{12}}{2}}", r"\sqrt{3}")


def test_extraction_beyond_the_time_limit_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Extraction compares the contents of all `<answer>` tags."""
    monkeypatch.setattr(limits, "MAX_STEPS", 10**12)
    monkeypatch.setattr(math, "LIMIT_S", 0.05)
    tagged = "".join(f"<answer>{text}</answer>" for text in SLOW[0])
    assert extract(tagged) is None
    assert not verify(tagged, "18")


def test_a_timed_out_verdict_is_unscorable_and_restarts_no_child() -> None:
    async def main() -> list[Score]:
        async with math_scorer(workers=1, limit_s=0.05) as scorer:
            (gold, given), children = SLOW[0], children_of(os.getpid())
            right = (r"\boxed{\frac{\sqrt{12}}{2}}", r"\sqrt{3}")
            scores = await math_scores(scorer, [(boxed(given), gold), right])
            assert children_of(os.getpid()) == children
            return scores

    slow, right = asyncio.run(main())
    assert slow.unscorable == "reward 'math': timed out after 0.05 s"
    assert (right.reward, right.unscorable) == (1.0, "")


def test_verdicts_time_out_before_their_child_does() -> None:
    assert math.LIMIT_S == 2.0
    assert ScorerConfig().timeout_s == 5.0
