"""Plans: complete, inside the budget, equal over ranks, and cheapest; and the layout of the tensors."""

import random
import time
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from volley.learner.compute.packing import MICRO_BATCH_COST, collate, padding_share, plan
from volley.learner.signals.batch import Row

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
def test_little_is_padding(shortest, longest, num_ranks):
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


ROWS = [
    Row((1, 2), (3, 4, 5), (-0.3, -0.4, -0.5), 0),
    Row((9,), (8,), (-0.8,), 1),
    Row((6, 6, 6), (7, 7), (-0.1, -0.2), 0),
]


def test_collate_by_hand():
    data = collate(ROWS, [2, 1, 0], advantages=[0.5, -1.0, 2.0], pad_id=0)
    assert data.input_ids_NL.tolist() == [[6, 6, 6, 7], [9, 0, 0, 0], [1, 2, 3, 4]]
    assert data.attention_mask_NL.tolist() == [[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert data.positions_M.tolist() == [2, 3, 4, 9, 10, 11]
    assert data.targets_M.tolist() == [7, 7, 8, 3, 4, 5]
    assert data.mask_NT.tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1]]
    torch.testing.assert_close(
        data.behaviour_NT, torch.tensor([[-0.1, -0.2, 0.0], [-0.8, 0.0, 0.0], [-0.3, -0.4, -0.5]])
    )
    assert data.advantages_N.tolist() == [2.0, -1.0, 0.5]
    assert data.fresh_N.tolist() == [1.0, 0.0, 1.0]
    assert data.scatter(data.targets_M).tolist() == [[7, 7, 0], [8, 0, 0], [3, 4, 5]]
    for tensor in (data.behaviour_NT, data.mask_NT, data.advantages_N, data.fresh_N):
        assert tensor.dtype == torch.float32
    for tensor in (*data.model_inputs, data.slots_M):
        assert tensor.dtype == torch.int64


def test_without_padding_there_is_no_attention_mask():
    same_length = [ROWS[0], Row((5, 5, 5, 5), (1,), (-1.0,), 0)]
    data = collate(same_length, [0, 1], [0.0, 0.0], pad_id=0)
    assert data.attention_mask_NL is None
    assert data.mask_NT.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert data.to("cpu").attention_mask_NL is None


def test_rows_without_completion_tokens():
    rows = [Row((4,), (), (), 0), Row((1, 2), (3,), (-0.5,), 0)]
    data = collate(rows, [0, 1], [0.0, 1.0], pad_id=0)
    assert data.input_ids_NL.tolist() == [[4, 0], [1, 2]]
    assert (data.positions_M.tolist(), data.targets_M.tolist()) == ([3], [3])
    assert data.mask_NT.tolist() == [[0.0], [1.0]]
    alone = collate(rows, [0], [0.0, 1.0], pad_id=0)
    assert alone.scatter(torch.zeros(0)).shape == (1, 0)


def test_an_empty_prompt_is_refused():
    with pytest.raises(AssertionError, match="empty prompt"):
        collate([Row((), (3,), (-0.5,), 0)], [0], [0.0], pad_id=0)


def test_gradients_flow_back_through_scatter():
    data = collate(ROWS, [0, 1, 2], [0.0] * 3, pad_id=0)
    values = torch.arange(6.0, requires_grad=True)
    weights = torch.arange(9.0).view(3, 3) + 1
    (gradient,) = torch.autograd.grad((data.scatter(values) * weights).sum(), values)
    assert gradient.tolist() == weights[data.mask_NT == 1].tolist()


class RunningSum(nn.Module):
    """A causal model: the state at a place is the sum of the embeddings up to it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(12, 5)
        self.head = nn.Linear(5, 12)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(input_ids).cumsum(-2)).log_softmax(-1)


@settings(deadline=None, max_examples=30)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 6)), min_size=1, max_size=6),
    pad_id=st.integers(0, 11),
    order=st.randoms(use_true_random=False),
)
def test_a_batch_predicts_what_each_sequence_alone_does(shapes, pad_id, order):
    model = RunningSum()
    rows = [
        Row(tuple(order.randrange(12) for _ in range(p)), tuple(order.randrange(12) for _ in range(t)), (0.0,) * t, 0)
        for p, t in shapes
    ]
    indices = order.sample(range(len(rows)), len(rows))
    data = collate(rows, indices, [0.0] * len(rows), pad_id)
    table = model(data.input_ids_NL).flatten(0, 1)[data.positions_M]
    together = data.scatter(table.gather(1, data.targets_M[:, None]).squeeze(1))
    for n, i in enumerate(indices):
        prompt, completion = rows[i].prompt_ids, rows[i].completion_ids
        for t, token in enumerate(completion):
            alone = model(torch.tensor(prompt + completion[:t]))[-1, token]
            torch.testing.assert_close(together[n, t], alone)
