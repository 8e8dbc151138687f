"""Kimi k1.5's length reward as a term of a run: through the scorer, beside the verifier that it asks."""

import asyncio
import math

import pytest

from volley.rewards.config import RewardConfig, ScorerConfig
from volley.rewards.scoring.preflight import check_rewards
from volley.rewards.scoring.scorer import Scorer
from volley.rollout.errors import ConfigError, RewardError
from volley.rollout.types import Completion, Prompt, Score

TERMS = [RewardConfig("math"), RewardConfig("length_group", weight=0.2)]


def completion(text: str, num_tokens: int) -> Completion:
    return Completion((1,) * num_tokens, (0.0,) * num_tokens, text, "stop", 0, 0)


def scored(terms: list[RewardConfig], completions: list[Completion], answer: str = "18") -> tuple[Score, ...]:
    async def main() -> tuple[Score, ...]:
        prompt = Prompt(0, 0, "question", (1, 2), answer, {})
        async with Scorer(terms, ScorerConfig(workers=1)) as scorer:
            plain = [await scorer.score(prompt, each) for each in completions]
            return await scorer.finish(prompt, completions, plain)

    return asyncio.run(main())


def test_short_answers_win_where_they_are_right() -> None:
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


def test_equal_lengths_say_nothing() -> None:
    scores = scored(TERMS, [completion(r"\boxed{18}", 9), completion(r"\boxed{19}", 9)])
    assert [score.terms["length_group"] for score in scores] == [0.0, 0.0]


def test_what_cannot_be_judged_gets_no_value_but_counts_for_the_range() -> None:
    one, other = scored(TERMS, [completion(r"\boxed{18}", 5), completion(r"\boxed{18}", 9)], answer="")
    assert math.isnan(one.terms["length_group"])
    assert math.isnan(one.reward)
    assert one.unscorable == other.unscorable
    assert one.unscorable.startswith("reward 'math': the gold answer")


def test_a_verifier_of_ones_own_tells_what_is_correct(tmp_path) -> None:
    (tmp_path / "own.py").write_text("def judge(prompt, response, answer): return float('good' in response)\n")
    terms = [RewardConfig(f"{tmp_path}/own.py:judge", accuracy=True), RewardConfig("length_group")]
    scores = scored(terms, [completion("good", 10), completion("bad", 10), completion("good", 20)])
    assert [score.terms["length_group"] for score in scores] == [0.5, 0.0, -0.5]


@pytest.mark.parametrize(
    ("terms", "group_size", "error", "said"),
    [
        ([RewardConfig("length_group")], 8, ConfigError, "no reward tells; add math, or flag a verifier"),
        ([RewardConfig("math"), RewardConfig("length_group")], 1, RewardError, "set it to at least 2"),
        (
            [RewardConfig("math"), RewardConfig("length_group", options={"max_tokens": 9})],
            8,
            RewardError,
            "takes no options; leave 'max_tokens' out",
        ),
        ([RewardConfig("length_group", accuracy=True)], 8, ConfigError, "it cannot tell what is correct"),
    ],
)
def test_found_before_the_run(terms: list[RewardConfig], group_size: int, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        check_rewards(terms, {"prompt", "answer"}, group_size)


def test_nothing_to_find() -> None:
    check_rewards(TERMS, {"prompt", "answer"}, 8)
