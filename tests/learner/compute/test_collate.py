"""The layout of a micro-batch's tensors: rows for the model, completions for the losses."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.learner.rows import Row, rows_of, segment
from volley.learner.compute.collate import collate
from volley.learner.signals.rows import Rows
from volley.rollout.types import Completion, as_token_ids

ROWS = [
    Row((1, 2), (3, 4, 5), (-0.3, -0.4, -0.5), 0),
    Row((9,), (8,), (-0.8,), 1),
    Row((6, 6, 6), (7, 7), (-0.1, -0.2), 0),
]


def test_collate_by_hand():
    data = collate(rows_of(ROWS[::-1]), pad_id=0)
    assert data.input_ids_RL.tolist() == [[6, 6, 6, 7], [9, 0, 0, 0], [1, 2, 3, 4]]
    assert data.attention_mask_RL.tolist() == [[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert data.positions_M.tolist() == [2, 3, 4, 9, 10, 11]
    assert data.targets_M.tolist() == [7, 7, 8, 3, 4, 5]
    assert data.mask_NT.tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1]]
    torch.testing.assert_close(
        data.behaviour_NT, torch.tensor([[-0.1, -0.2, 0.0], [-0.8, 0.0, 0.0], [-0.3, -0.4, -0.5]])
    )
    assert data.fresh_N.tolist() == [1.0, 0.0, 1.0]
    assert data.scatter(data.targets_M).tolist() == [[7, 7, 0], [8, 0, 0], [3, 4, 5]]
    for tensor in (data.behaviour_NT, data.mask_NT, data.fresh_N):
        assert tensor.dtype == torch.float32
    for tensor in (*data.model_inputs, data.slots_M):
        assert tensor.dtype == torch.int64


def test_without_padding_there_is_no_attention_mask():
    same_length = [ROWS[0], Row((5, 5, 5, 5), (1,), (-1.0,), 0)]
    data = collate(rows_of(same_length), pad_id=0)
    assert data.attention_mask_RL is None
    assert data.mask_NT.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert data.to("cpu").attention_mask_RL is None


def test_rows_without_completion_tokens():
    rows = [Row((4,), (), (), 0), Row((1, 2), (3,), (-0.5,), 0)]
    data = collate(rows_of(rows), pad_id=0)
    assert data.input_ids_RL.tolist() == [[4, 0], [1, 2]]
    assert (data.positions_M.tolist(), data.targets_M.tolist()) == ([3], [3])
    assert data.mask_NT.tolist() == [[0.0], [1.0]]
    alone = collate(rows_of(rows[:1]), pad_id=0)
    assert alone.scatter(torch.zeros(0)).shape == (1, 0)


def test_an_empty_prompt_is_refused():
    with pytest.raises(AssertionError, match="empty prompt"):
        collate(rows_of([Row((), (3,), (-0.5,), 0)]), pad_id=0)


def test_gradients_flow_back_through_scatter():
    data = collate(rows_of(ROWS), pad_id=0)
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
def test_a_batch_predicts_the_same_as_each_sequence_alone(shapes, pad_id, order):
    model = RunningSum()
    rows = [
        Row(tuple(order.randrange(12) for _ in range(p)), tuple(order.randrange(12) for _ in range(t)), (0.0,) * t, 0)
        for p, t in shapes
    ]
    indices = order.sample(range(len(rows)), len(rows))
    data = collate(rows_of(rows).take(np.array(indices)), pad_id)
    table = model(data.input_ids_RL).flatten(0, 1)[data.positions_M]
    together = data.scatter(table.gather(1, data.targets_M[:, None]).squeeze(1))
    for n, i in enumerate(indices):
        prompt, completion = rows[i].prompt_ids, rows[i].completion_ids
        for t, token in enumerate(completion):
            alone = model(torch.tensor(prompt + completion[:t]))[-1, token]
            torch.testing.assert_close(together[n, t], alone)


EPISODES = Rows.from_completions(
    [
        # Two turns with an observation between them, then a rewritten history.
        (
            as_token_ids([1, 2]),
            Completion(
                (
                    segment([([3, 4], True), ([5], False), ([6], True)], -0.3),
                    segment([([1, 9, 9], False), ([7, 8], True)], -0.7),
                ),
                "",
                "stop",
            ),
        ),
        (as_token_ids([11]), Completion((segment([([12], True)], -0.9),), "", "stop")),
    ],
    3,
)


def test_an_episode_by_hand():
    data = collate(EPISODES, pad_id=0)
    assert data.input_ids_RL.tolist() == [[1, 2, 3, 4, 5], [1, 9, 9, 7, 0], [11, 0, 0, 0, 0]]
    assert data.attention_mask_RL.tolist() == [[1] * 5, [1, 1, 1, 1, 0], [1, 0, 0, 0, 0]]
    assert data.targets_M.tolist() == [3, 4, 6, 7, 8, 12]
    assert data.positions_M.tolist() == [1, 2, 4, 7, 8, 10]
    assert data.mask_NT.tolist() == [[1] * 5, [1, 0, 0, 0, 0]]
    assert data.scatter(data.targets_M).tolist() == [[3, 4, 6, 7, 8], [12, 0, 0, 0, 0]]
    expected = torch.tensor([[-0.3, -0.4, -0.6, -1.0, -1.1], [-0.9, 0, 0, 0, 0]])
    torch.testing.assert_close(data.behaviour_NT, expected)
    assert data.fresh_N.tolist() == [0.0, 0.0]


def test_completions_stay_whole_when_rows_are_taken():
    turned = EPISODES.take(np.array([1, 0]))
    assert turned.rows_per_completion.tolist() == [1, 2]
    assert turned.trained_per_completion.tolist() == [1, 5]
    assert turned.take(np.array([1, 0])) == EPISODES
    assert Rows.joined([EPISODES.part(0, 1), EPISODES.part(1, 2)]) == EPISODES
    assert EPISODES.take(np.array([0])) == EPISODES.part(0, 1)
    assert collate(turned, 0).mask_NT.tolist() == [[1, 0, 0, 0, 0], [1] * 5]
