"""Kimi k1.5's length reward: the formula, and the term in a scorer together with the verifier that it needs."""

import asyncio
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volley.rewards.config import RewardConfig, ScorerConfig
from volley.rewards.length.relative import group_relative
from volley.rewards.scoring.preflight import check_rewards
from volley.rewards.scoring.scorer import Scorer
from volley.rollout.errors import ConfigError, RewardError
from volley.rollout.types import Completion, Prompt, Score, as_token_ids

TERMS = [RewardConfig("math"), RewardConfig("length_group", weight=0.2)]


def completion(text: str, num_tokens: int) -> Completion:
    return Completion.single((1,) * num_tokens, (0.0,) * num_tokens, text, "stop", 0, 0)


def scored(terms: list[RewardConfig], completions: list[Completion], answer: str = "18") -> tuple[Score, ...]:
    async def main() -> tuple[Score, ...]:
        prompt = Prompt(0, 0, "question", as_token_ids((1, 2)), answer, {})
        async with Scorer(terms, ScorerConfig(workers=1)) as scorer:
            plain = [await scorer.score(prompt, each) for each in completions]
            return await scorer.score_group(prompt, completions, plain)

    return asyncio.run(main())


def test_short_correct_answers_get_more() -> None:
    group = [
        completion(r"\boxed{18}", 100),
        completion(r"\boxed{18}", 300),
        completion(r"\boxed{18}", 150),
        completion(r"\boxed{19}", 100),
        completion(r"\boxed{19}", 300),
    ]
    scores = scored(TERMS, group)
    assert [score.terms["length_group"] for score in scores] == pytest.approx([0.5, -0.5, 0.25, 0.0, -0.5])
    assert [score.reward for score in scores] == pytest.approx([1.1, 0.9, 1.05, 0.0, -0.1])
    assert [score.accuracy for score in scores] == [1.0, 1.0, 1.0, 0.0, 0.0]


def test_equal_lengths_get_zero() -> None:
    scores = scored(TERMS, [completion(r"\boxed{18}", 9), completion(r"\boxed{19}", 9)])
    assert [score.terms["length_group"] for score in scores] == [0.0, 0.0]


def test_unjudged_responses_get_no_value_but_count_for_the_range() -> None:
    one, other = scored(TERMS, [completion(r"\boxed{18}", 5), completion(r"\boxed{18}", 9)], answer="")
    assert math.isnan(one.terms["length_group"])
    assert math.isnan(one.reward)
    assert one.unscorable == other.unscorable
    assert one.unscorable.startswith("reward 'math': the gold answer")


def test_a_user_verifier_decides_correctness(tmp_path) -> None:
    (tmp_path / "own.py").write_text("def judge(prompt, response, answer): return float('good' in response)\n")
    terms = [RewardConfig(f"{tmp_path}/own.py:judge", accuracy=True), RewardConfig("length_group")]
    scores = scored(terms, [completion("good", 10), completion("bad", 10), completion("good", 20)])
    assert [score.terms["length_group"] for score in scores] == [0.5, 0.0, -0.5]


@pytest.mark.parametrize(
    ("terms", "group_size", "error", "message"),
    [
        ([RewardConfig("length_group")], 8, ConfigError, "add math, or set accuracy: true on a verifier"),
        ([RewardConfig("math"), RewardConfig("length_group")], 1, RewardError, "set it to at least 2"),
        (
            [RewardConfig("math"), RewardConfig("length_group", options={"max_tokens": 9})],
            8,
            RewardError,
            "takes no options; remove 'max_tokens'",
        ),
        ([RewardConfig("length_group", accuracy=True)], 8, ConfigError, "it does not decide correctness"),
    ],
)
def test_bad_configurations_are_refused(terms: list[RewardConfig], group_size: int, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        check_rewards(terms, {"prompt", "answer"}, group_size)


def test_a_valid_configuration_passes() -> None:
    check_rewards(TERMS, {"prompt", "answer"}, 8)


@given(st.lists(st.tuples(st.integers(0, 1000), st.booleans()), max_size=12))
def test_group_relative_in_exact_fractions(group: list[tuple[int, bool]]) -> None:
    lengths, correct = [each[0] for each in group], [each[1] for each in group]
    ordered = sorted(lengths)
    expected = []
    for length, is_correct in group:
        if ordered[0] == ordered[-1]:
            expected.append(Fraction(0))
            continue
        scaled = Fraction(ordered[0] + ordered[-1] - 2 * length, 2 * (ordered[-1] - ordered[0]))
        expected.append(scaled if is_correct or scaled < 0 else Fraction(0))
    assert group_relative(lengths, correct) == pytest.approx([float(each) for each in expected], abs=1e-12)


def test_group_relative_needs_one_verdict_per_length() -> None:
    with pytest.raises(ValueError, match="2 lengths but 1 verdicts"):
        group_relative([1, 2], [True])
