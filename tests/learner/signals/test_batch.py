"""Scored groups to a batch."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from tests.learner.rows import group as make_group
from tests.learner.rows import row_values
from volley.learner.losses.policy.dr_grpo import DrGrpo
from volley.learner.losses.policy.rloo import Rloo
from volley.learner.losses.sft import Sft
from volley.learner.ranks.shards import make_shards
from volley.learner.signals.advantages import Advantages
from volley.learner.signals.batch import Counts, make_batch
from volley.learner.signals.demonstrations import Demonstrations
from volley.rollout.types import Completion, ScoredGroup


def group(ordinal: int, rewards: list[float], versions: list[int]) -> ScoredGroup:
    """Completion i says token 10 * ordinal + i, once more each time."""
    completions = [
        Completion.single((10 * ordinal + i,) * (i + 1), (-0.5,) * (i + 1), "text", "stop", version, version + 1)
        for i, version in enumerate(versions)
    ]
    return make_group(ordinal, (ordinal, ordinal), completions, rewards)


def advantages(values: Sequence[float]) -> Advantages:
    return Advantages(np.array(values, dtype=np.float64))


def test_rows_follow_the_groups():
    batch = make_batch([group(1, [1.0, 0.0], [5, 5]), group(2, [0.0, 0.5], [4, 5])], DrGrpo(), version=5)
    rows = row_values(batch.rows)
    assert [row.prompt_ids for row in rows] == [(1, 1), (1, 1), (2, 2), (2, 2)]
    assert [row.completion_ids for row in rows] == [(10,), (11, 11), (20,), (21, 21)]
    assert [row.behaviour_logprobs for row in rows] == [(-0.5,), (-0.5, -0.5)] * 2
    assert batch.rows.lengths.tolist() == [3, 4, 3, 4]
    assert batch.counts == Counts(tokens=6, completions=4)
    assert batch.signal == advantages((0.5, -0.5, -0.25, 0.25))


def test_staleness_counts_from_the_first_token():
    batch = make_batch([group(1, [1.0, 0.0, 0.0], [7, 6, 4])], DrGrpo(), version=7)
    assert batch.rows.staleness.tolist() == [0, 1, 3]


def test_unscorable_completions_are_left_out_of_rows_and_baseline():
    batch = make_batch([group(1, [1.0, math.nan, 0.0, math.nan], [0] * 4)], Rloo(), version=0)
    assert [row.completion_ids[0] for row in row_values(batch.rows)] == [10, 12]
    assert batch.signal == advantages((1.0, -1.0))


@pytest.mark.parametrize(("rewards", "expected"), [([math.nan, math.nan], ()), ([math.nan, 1.0], (0.0,))])
def test_groups_with_fewer_than_two_scorable_completions_have_no_advantage(rewards, expected):
    batch = make_batch([group(1, rewards, [0, 0])], Rloo(), version=0)
    assert batch.rows.num_completions == len(expected)
    assert batch.signal == advantages(expected)


def test_every_row_has_its_advantage():
    groups = [group(i, [float(i % 3), 1.0, math.nan], [0, 0, 0]) for i in range(1, 6)]
    batch = make_batch(groups, Rloo(), version=0)
    assert isinstance(batch.signal, Advantages)
    assert len(batch.signal.values) == batch.rows.num_completions == 10
    for row, value in zip(row_values(batch.rows), batch.signal.values, strict=True):
        ordinal, i = divmod(row.completion_ids[0], 10)
        rewards = [float(ordinal % 3), 1.0]
        assert value == pytest.approx(rewards[i] - rewards[1 - i])


def test_demonstrations_need_no_advantages():
    batch = make_batch([group(1, [1.0], [0])], Sft(), version=0)
    assert batch.rows.num_completions == 1
    assert batch.signal == Demonstrations()


def test_rows_without_advantage_count_only_in_the_normalizer():
    groups = [group(1, [1.0, 1.0], [0, 0]), group(2, [1.0, 0.0], [0, 0])]
    batch = make_batch(groups, DrGrpo(), version=0)
    kept = batch.without_idle()
    assert [row.completion_ids[0] for row in row_values(kept.rows)] == [20, 21]
    assert kept.signal == advantages((0.5, -0.5))
    assert batch.rows.num_completions == 4
    (shard,) = make_shards(batch, 100, 1, skips_idle=True)
    assert (shard.work.rows.num_completions, shard.counts) == (2, batch.counts)
    (shard,) = make_shards(batch, 100, 1, skips_idle=False)
    assert shard.work.rows.num_completions == 4, "a reference pulls on every row"


def test_a_batch_without_any_advantage_keeps_one_row_and_an_empty_one_stays_empty():
    batch = make_batch([group(1, [1.0, 1.0], [0, 0])], DrGrpo(), version=0)
    assert batch.without_idle().rows.num_completions == 1
    empty = make_batch([group(1, [math.nan, math.nan], [0, 0])], DrGrpo(), version=0)
    assert empty.without_idle().rows.num_completions == 0
    (shard,) = make_shards(empty, 100, 1, skips_idle=True)
    assert (shard.counts.completions, shard.work.sizes) == (0, ())
