"""Evaluation's numbers against counting by hand."""

import itertools
import math

import pytest

from volley.cluster.loop.evaluate import greedy_metrics, pass_at_k, sample_metrics
from volley.rollout.types import Completion, Prompt, Score, ScoredGroup, as_token_ids


def group(answers: list[tuple[str, float]], length: int = 3, reason: str = "stop") -> ScoredGroup:
    completion = Completion.single((1,) * length, (-1.0,) * length, "", reason, 0, 0)
    scores = tuple(Score(right, {}, "", right, text) for text, right in answers)
    return ScoredGroup(Prompt(0, 0, "", as_token_ids((1,)), ""), (completion,) * len(answers), scores)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 0, 2), (4, 1, 2), (5, 2, 3), (6, 6, 1), (8, 3, 8)])
def test_pass_at_k_equals_the_share_of_subsets_with_a_right_answer(n: int, c: int, k: int) -> None:
    subsets = list(itertools.combinations(range(n), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(min(subset) < c for subset in subsets) / len(subsets))


def test_responses_without_an_answer_do_not_vote() -> None:
    wins = group([("7", 1.0), ("8", 0.0), ("7", 1.0), ("", 0.0), ("", 0.0), ("", 0.0)])
    loses = group([("8", 0.0), ("8", 0.0), ("7", 1.0), ("7", 1.0), ("8", 0.0), ("9", 0.0)])
    metrics = sample_metrics([wins, loses])
    assert metrics["maj@6"] == 0.5
    assert metrics["pass@1_of_6"] == pytest.approx(2 / 6)
    assert metrics["pass@6_of_6"] == 1.0
    assert sample_metrics([group([("", 0.0)] * 4)])["maj@4"] == 0.0
    assert sample_metrics([group([("7", 1.0)] * 2, 3), group([("7", 1.0)] * 2, 5)])["response_length_mean_of_2"] == 4.0


def test_length_buckets_show_the_accuracy_of_short_responses() -> None:
    groups = [group([("1", float(length > 2))], length) for length in (1, 2, 3, 4)] + [
        group([("1", 1.0)], 9, "length") for _ in range(4)
    ]
    metrics = greedy_metrics(groups, 4)
    assert metrics["pass@1"] == 0.75
    assert metrics["length_bucket_1/accuracy"] == 0.0
    assert metrics["length_bucket_2/accuracy"] == 1.0
    assert metrics["length_bucket_2/tokens_max"] == 4
    assert metrics["truncated_share"] == 0.5
    assert metrics["no_answer_share"] == 0.0
    assert greedy_metrics([group([("", 0.0)]), group([("1", 0.0)])], 1)["no_answer_share"] == 0.5


def test_accuracies_are_nan_without_a_verifier() -> None:
    assert math.isnan(greedy_metrics([group([("", math.nan)])], 4)["pass@1"])
