"""Rewards to pairs and labels, and the batches made of them."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.learner.rows import group as make_group
from tests.learner.rows import row_values
from volley.learner.config import SignalConfig
from volley.learner.losses.policy.reinforce_pp import ReinforcePP
from volley.learner.losses.preference.dpo import Dpo
from volley.learner.losses.preference.kto import Kto
from volley.learner.signals.advantages import Advantages
from volley.learner.signals.batch import make_batch
from volley.learner.signals.labels import Labels
from volley.learner.signals.pairs import GroupPairs, Pairs, group_pairs
from volley.rollout.types import Completion, ScoredGroup, as_token_ids

NAN = math.nan
ALL = SignalConfig(pairs="all")


def group(number: int, rewards: list[float], texts: str = "abcdefgh") -> ScoredGroup:
    completions = [
        Completion.single((ord(texts[i]), 1) + (2,) * i, (-0.5,) * (i + 2), texts[i], "stop", 3, 3)
        for i in range(len(rewards))
    ]
    return make_group(number, (7, number), completions, rewards)


@pytest.mark.parametrize(
    ("rewards", "config", "pairs", "dropped"),
    [
        ([0.0, 1.0, 0.5], SignalConfig(), ((1, 0),), ""),
        ([1.0, 1.0, 0.0, 0.0], SignalConfig(), ((0, 2),), ""),
        ([0.0, NAN, 1.0], SignalConfig(), ((2, 0),), ""),
        ([0.5, 0.5], SignalConfig(), (), "tied"),
        ([0.3, 0.1 + 0.2], SignalConfig(), (), "tied"),
        ([0.0, 0.4], SignalConfig(margin=0.5), (), "tied"),
        ([0.0, 0.5], SignalConfig(margin=0.5), ((1, 0),), ""),
        ([1.0, NAN], SignalConfig(), (), "unscorable"),
        ([0.0, 0.5, 1.0], ALL, ((1, 0), (2, 0), (2, 1)), ""),
        ([0.0, 0.5, 1.0], SignalConfig(pairs="all", margin=0.6), ((2, 0),), ""),
    ],
)
def test_which_pairs(rewards: list[float], config: SignalConfig, pairs: tuple[object, ...], dropped: str) -> None:
    found = group_pairs(rewards, [as_token_ids([i]) for i in range(len(rewards))], config)
    assert (found.pairs, found.dropped) == (pairs, dropped)


def test_completions_with_the_same_tokens_are_no_pair() -> None:
    assert group_pairs([1.0, 0.0], list(map(as_token_ids, [[5], [5]])), SignalConfig()) == GroupPairs((), "same", 1)
    assert group_pairs([1.0, 0.0, 0.0], list(map(as_token_ids, [[5], [5], [6]])), ALL) == GroupPairs(((0, 2),), "", 1)


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, NAN]), min_size=1, max_size=8))
def test_every_pair_prefers_the_better(rewards: list[float]) -> None:
    for config in (SignalConfig(), ALL):
        found = group_pairs(rewards, [as_token_ids([i]) for i in range(len(rewards))], config)
        assert all(rewards[w] > rewards[loser] for w, loser in found.pairs)
        assert bool(found.pairs) != bool(found.dropped)
        assert len(set(found.pairs)) == len(found.pairs)


def test_a_pair_batch_contains_only_pairs_and_reports_what_was_dropped() -> None:
    groups = [group(1, [0.0, 1.0, 0.5]), group(2, [1.0, 1.0]), group(3, [NAN, 1.0]), group(4, [1.0, 0.0], "aa")]
    groups.append(group(5, [1.0, 0.0, 0.0]))
    batch = make_batch(groups, Dpo(), version=5)
    assert isinstance(batch.signal, Pairs)
    rows = row_values(batch.rows)
    said = [(rows[w].completion_ids[0], rows[loser].completion_ids[0]) for w, loser in batch.signal.pairs]
    assert [tuple(map(chr, each)) for each in said] == [("b", "a"), ("a", "a"), ("a", "b")]
    assert batch.signal.units.tolist() == [0, 0, 1, 1, 2, 2]
    assert batch.rows.num_completions == 6
    assert {row.staleness for row in rows} == {2}
    assert batch.metrics["pair_yield"] == pytest.approx(3 / 5)
    assert batch.metrics["pairs_dropped/tied"] == batch.metrics["pairs_dropped/unscorable"] == 1
    assert batch.metrics["chosen_length_mean"] == pytest.approx((3 + 2 + 2) / 3)
    reasons = [Pairs.reason_against(each, SignalConfig()) for each in groups]
    assert reasons == ["", "tied", "unscorable", "", ""]
    assert [Advantages.reason_against(each, SignalConfig()) for each in groups] == reasons


def test_the_yield_counts_all_groups_drawn() -> None:
    """7 of 15 groups gave no pair and were replaced: half of what was sampled taught something, not all of it."""
    groups = [group(n, [0.0, 1.0]) for n in range(8)]
    metrics = make_batch(groups, Dpo(), version=3, replaced={"tied": 5, "same": 2}).metrics
    assert metrics["pair_yield"] == pytest.approx(8 / 15)
    assert {name: value for name, value in metrics.items() if name.startswith("pairs_dropped/")} == {
        "pairs_dropped/tied": 5.0,
        "pairs_dropped/unscorable": 0.0,
        "pairs_dropped/same": 2.0,
    }
    assert metrics["pairs_same"] == 0, "replaced groups do not count as undecided pairs"


def test_pairs_of_some_completions_in_another_order() -> None:
    signal = Pairs(np.array([[0, 1], [3, 2], [5, 4], [5, 6]]), np.array([0, 0, 1, 1, 2, 2, 2]))
    expected = Pairs(np.array([[4, 3], [1, 0], [1, 2]]), np.array([2, 2, 2, 1, 1]))
    assert signal.take(np.array([4, 5, 6, 2, 3])) == expected
    assert signal.take(np.array([4, 5])).pairs.tolist() == [[1, 0]]


def test_labels_and_mismatched_rows() -> None:
    batch = make_batch([group(1, [0.2, NAN]), group(2, [0.5, 1.0])], Kto(), version=3)
    assert isinstance(batch.signal, Labels)
    assert batch.signal.values.tolist() == [False, True, True]
    assert batch.metrics["desirable_share"] == pytest.approx(2 / 3)
    alone = make_batch([group(1, [0.0, 1.0])], Kto(), version=3)
    assert isinstance(alone.signal, Labels)
    assert alone.signal.mismatched is not None
    assert alone.signal.mismatched.num_completions == 0
    assert Labels.reason_against(group(1, [1.0, 1.0]), SignalConfig()) == ""
    assert Labels.reason_against(group(1, [NAN, NAN]), SignalConfig()) == "unscorable"


def mismatched(sizes: Sequence[int]) -> list[tuple[int, tuple[int, int]]]:
    """(prompt, (prompt, number) of the completion) of each mismatched row, where prompt p has sizes[p] completions."""
    groups = []
    for p, size in enumerate(sizes):
        completions = [Completion.single((100 + p, i), (-0.5, -0.5), "", "stop", 3, 3) for i in range(size)]
        groups.append(make_group(p, (p,), completions, [1.0] * size))
    batch = make_batch(groups, Kto(), version=3)
    assert isinstance(batch.signal, Labels)
    assert batch.signal.mismatched is not None
    return [
        (row.prompt_ids[0], (row.completion_ids[0] - 100, row.completion_ids[1]))
        for row in row_values(batch.signal.mismatched)
    ]


def test_every_completion_of_a_prompt_is_mismatched_with_one_of_the_next() -> None:
    assert mismatched([4, 4, 4]) == [(p, ((p + 1) % 3, i)) for p in range(3) for i in range(4)]
    assert mismatched([1, 1, 1]) == [(0, (1, 0)), (1, (2, 0)), (2, (0, 0))], "a data set's rows move on by one"


@given(st.lists(st.integers(1, 6), min_size=1, max_size=7))
def test_mismatched_rows_are_distinct_and_as_many_as_possible(sizes: list[int]) -> None:
    found = mismatched(sizes)
    assert all(prompt != owner for prompt, (owner, _) in found)
    assert len({completion for _, completion in found}) == len(found), "no completion twice"
    counts = Counter(prompt for prompt, _ in found)
    assert all(counts[p] <= size for p, size in enumerate(sizes)), "no row twice"
    # A prompt with more than half of the rows finds answers of others for as many of its own as there are others.
    assert len(found) == min(sum(sizes), 2 * (sum(sizes) - max(sizes)))


def test_separate_rows_of_one_prompt_are_not_mismatched_with_each_other() -> None:
    batch = make_batch([group(n, [1.0]) for n in (1, 2, 1, 3, 1, 2)], Kto(), version=3)
    assert isinstance(batch.signal, Labels)
    assert batch.signal.mismatched is not None
    mismatched, rows = row_values(batch.signal.mismatched), row_values(batch.rows)
    assert sorted(row.prompt_ids for row in mismatched) == sorted(row.prompt_ids for row in rows)


def test_reinforce_pp_scales_by_the_spread_of_the_whole_batch() -> None:
    batch = make_batch([group(1, [1.0, 0.0]), group(2, [1.0, 1.0]), group(3, [0.0, 0.5])], ReinforcePP(), version=3)
    centred = [0.5, -0.5, 0.0, 0.0, -0.25, 0.25]
    std = math.sqrt(sum(value**2 for value in centred) / 5)
    assert batch.signal.values == pytest.approx([value / std for value in centred])  # type: ignore[union-attr]
    assert batch.signal.values[2] == 0.0  # type: ignore[union-attr]
