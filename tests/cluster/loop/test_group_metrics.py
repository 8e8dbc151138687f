"""The metrics of a step's samples."""

import math

import pytest

from volley.cluster.loop.group_metrics import group_metrics
from volley.rollout.types import Completion, Prompt, Score, ScoredGroup, as_token_ids


def group(scores: list[Score], version: int = 3, length: int = 4) -> ScoredGroup:
    completion = Completion.single((1,) * length, (-1.0,) * length, "x", "length", version, version)
    return ScoredGroup(Prompt(0, 0, "p", as_token_ids((1,)), ""), (completion,) * len(scores), tuple(scores))


def test_unscorable_samples_are_counted_and_not_averaged() -> None:
    scores = [
        Score(1.1, {"math": 1.0, "format": 1.0}, accuracy=1.0),
        Score(0.1, {"math": 0.0, "format": 1.0}, accuracy=0.0),
        Score(math.nan, {"math": math.nan, "format": 1.0}, "reward 'math' timed out"),
    ]
    metrics = group_metrics([group(scores), group([Score(1.0, {"math": 1.0}, accuracy=1.0)] * 3, version=1)], 4)
    assert metrics["samples"] == 6
    assert metrics["unscorable"] == 1
    assert metrics["reward_mean"] == pytest.approx((1.1 + 0.1 + 3) / 5)
    assert metrics["reward/math"] == pytest.approx(4 / 5)
    assert metrics["reward/format"] == 1.0
    assert metrics["accuracy"] == pytest.approx(4 / 5)
    assert metrics["zero_variance_share"] == 0.5
    assert metrics["staleness_max"] == 3
    assert metrics["truncated_share"] == 1.0
    assert metrics["response_length_mean"] == 4


def test_metrics_exclude_completions_of_the_data_set() -> None:
    def answered(length: int, reason: str) -> Completion:
        return Completion.single((1,) * length, (0.0,) * length, "x", reason, 3, 3)

    prompt, scores = Prompt(0, 0, "p", as_token_ids((1,)), ""), (Score(1.0, {}), Score(0.0, {}, accuracy=1.0))
    joined = group_metrics([ScoredGroup(prompt, (answered(9, "data"), answered(4, "length")), scores)], 3)
    assert (joined["samples"], joined["completion_tokens"], joined["reward_mean"]) == (1, 4, 0.0)
    assert (joined["response_length_mean"], joined["truncated_share"], joined["accuracy"]) == (4, 1.0, 1.0)
    pair = group_metrics([ScoredGroup(prompt, (answered(9, "data"), answered(4, "data")), scores)], 3)
    assert (pair["samples"], pair["completion_tokens"], pair["reward_mean"]) == (2, 13, 0.5)
    assert not {"response_length_mean", "truncated_share", "zero_variance_share"} & set(pair)


def test_missing_answers_are_counted_separately_from_wrong_ones() -> None:
    def scores(*found: tuple[float, str | None]) -> list[Score]:
        return [Score(0.0, {}, accuracy=accuracy, extracted=extracted) for accuracy, extracted in found]

    known = scores((1.0, "18"), (0.0, "19"), (0.0, ""), (0.0, ""), (math.nan, ""))
    assert group_metrics([group(known)], 4)["no_answer_share"] == 0.5
    assert math.isnan(group_metrics([group(scores((1.0, None), (0.0, None), (math.nan, "")))], 4)["no_answer_share"])
