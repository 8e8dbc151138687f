"""Plans: complete, within the budget, balanced over ranks, and cheapest."""

import random
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volley.learner.compute.plan import MICRO_BATCH_COST, padding_share, plan

LENGTHS = st.lists(st.integers(1, 60), max_size=40)


@settings(deadline=None)
@given(lengths=LENGTHS, max_tokens=st.integers(1, 300), num_ranks=st.integers(1, 5))
def test_any_plan(lengths, max_tokens, num_ranks):
    ranks = plan(lengths, max_tokens, num_ranks)
    assert len(ranks) == num_ranks
    assert len({len(batches) for batches in ranks}) == 1, "every rank must make the same number of passes"
    assert sorted(i for batches in ranks for batch in batches for i in batch) == list(range(len(lengths)))
    for batches in ranks:
        for batch in batches:
            assert len(batch) <= 1 or len(batch) * max(lengths[i] for i in batch) <= max_tokens
    passes = list(zip(*ranks, strict=True))
    assert all(max(map(len, turn)) - min(map(len, turn)) <= 1 for turn in passes), "ranks may differ by one row"
    assert all(all(turn) for turn in passes[:-1]), "only in the last pass may ranks be without a row"
    assert all(any(turn) for turn in passes)
    rows_per_rank = [sum(map(len, batches)) for batches in ranks]
    assert max(rows_per_rank) - min(rows_per_rank) <= 1
    assert plan(lengths, max_tokens, num_ranks) == ranks
    assert 0 <= padding_share(ranks, lengths) < 1


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    """All ways to split a set into groups."""
    if not items:
        yield []
        return
    first, *rest = items
    for split in partitions(rest):
        yield [[first], *split]
        for i, group in enumerate(split):
            yield [*split[:i], [first, *group], *split[i + 1 :]]


@settings(deadline=None, max_examples=40)
@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=7), max_tokens=st.integers(200, 900))
def test_no_other_grouping_is_cheaper(lengths, max_tokens):
    def cost(groups: list[list[int]]) -> int:
        return sum(len(group) * max(lengths[i] for i in group) + MICRO_BATCH_COST for group in groups)

    def fits(groups: list[list[int]]) -> bool:
        return all(len(group) * max(lengths[i] for i in group) <= max_tokens for group in groups)

    cheapest = min(cost(groups) for groups in partitions(list(range(len(lengths)))) if fits(groups))
    assert cost(plan(lengths, max_tokens)[0]) == cheapest


def test_a_plan_by_hand():
    lengths = [10, 500, 10, 480, 2000, 10]
    # The long row alone; the two of about 500 together; the short ones together.
    assert plan(lengths, max_tokens=1000) == [[[4], [1, 3], [0, 2, 5]]]
    # Two ranks side by side: while one has the longest row, the other can have the next.
    assert plan(lengths, max_tokens=1000, num_ranks=2) == [[[4], [3], [2]], [[1], [0], [5]]]
    assert padding_share([[[4], [1, 3], [0, 2, 5]]], lengths) == pytest.approx(20 / (2000 + 1000 + 30))


def test_nothing_to_plan():
    assert plan([], 100, num_ranks=3) == [[], [], []]
    assert padding_share([[], []], []) == 0.0


@pytest.mark.parametrize("num_ranks", [1, 4])
@pytest.mark.parametrize(("shortest", "longest"), [(18, 34), (10, 40), (100, 1200)])
def test_padding_is_small(shortest, longest, num_ranks):
    generator = random.Random(0)
    lengths = [generator.randint(shortest, longest) for _ in range(256 * num_ranks)]
    ranks = plan(lengths, 16384, num_ranks)
    assert padding_share(ranks, lengths) <= 0.10
    work = [sum(len(batch) * max(lengths[i] for i in batch) for batch in batches if batch) for batches in ranks]
    assert max(work) <= 1.03 * min(work)


def test_many_rows_are_planned_quickly():
    generator = random.Random(0)
    lengths = [generator.randint(50, 4000) for _ in range(4096)]
    start = time.perf_counter()
    plan(lengths, 1 << 30, num_ranks=8)
    assert time.perf_counter() - start < 2


@settings(deadline=None)
@given(
    units=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 5)), max_size=30),
    max_tokens=st.integers(1, 300),
    num_ranks=st.integers(1, 4),
)
def test_any_plan_of_units_with_several_rows(units, max_tokens, num_ranks):
    lengths, rows = [length for length, _ in units], [size for _, size in units]
    ranks = plan(lengths, max_tokens, num_ranks, rows)
    assert len({len(batches) for batches in ranks}) == 1
    assert sorted(i for batches in ranks for batch in batches for i in batch) == list(range(len(units)))
    for batches in ranks:
        for batch in batches:
            assert len(batch) <= 1 or sum(rows[i] for i in batch) * max(lengths[i] for i in batch) <= max_tokens
    assert 0 <= padding_share(ranks, lengths, rows) < 1


@settings(deadline=None, max_examples=30)
@given(
    units=st.lists(st.tuples(st.integers(1, 200), st.integers(1, 4)), min_size=1, max_size=6),
    max_tokens=st.integers(400, 1500),
)
def test_no_other_cut_of_units_is_cheaper(units, max_tokens):
    """Among cuts of the order from long to short."""
    lengths, rows = [length for length, _ in units], [size for _, size in units]
    order = sorted(range(len(units)), key=lambda i: -lengths[i])

    def cost(groups: list[list[int]]) -> int:
        return sum(sum(rows[i] for i in g) * max(lengths[i] for i in g) + MICRO_BATCH_COST for g in groups)

    def fits(group: list[int]) -> bool:
        return len(group) == 1 or sum(rows[i] for i in group) * max(lengths[i] for i in group) <= max_tokens

    def cuts(items: list[int]) -> Iterator[list[list[int]]]:
        if not items:
            yield []
        for end in range(1, len(items) + 1):
            yield from ([items[:end], *rest] for rest in cuts(items[end:]))

    cheapest = min(cost(groups) for groups in cuts(order) if all(map(fits, groups)))
    assert cost(plan(lengths, max_tokens, 1, rows)[0]) == cheapest
