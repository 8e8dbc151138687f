"""PPO against derivations straight from the formulas, in float64 and with loops."""

import math
import random
from typing import Any

import numpy as np
import pytest
import torch

from tests.learner.rows import Row, group, rows_of
from volley.learner.compute.collate import collate
from volley.learner.config import SignalConfig
from volley.learner.losses.common import MicroBatch
from volley.learner.losses.policy.ppo import Ppo
from volley.learner.signals.batch import MicroBatchPart, make_batch
from volley.learner.signals.returns import CriticTensors, Returns, Targets, gae
from volley.learner.signals.rows import PlannedRows
from volley.rollout.errors import ConfigError
from volley.rollout.types import Completion


def double_sum(reward: float, values: list[float], gamma: float, lam: float) -> list[float]:
    """Equation 16 directly: sums of all later temporal differences."""
    length = len(values)
    rewards, after = [0.0] * (length - 1) + [reward], [*values[1:], 0.0]
    deltas = [r + gamma * v_next - v for r, v_next, v in zip(rewards, after, values, strict=True)]
    return [math.fsum((gamma * lam) ** k * deltas[t + k] for k in range(length - t)) for t in range(length)]


def one(reward: float, values: list[float], gamma: float, lam: float) -> list[float]:
    """`gae` of one completion."""
    found = gae(np.array([reward]), np.array([values]), np.array([len(values)]), gamma, lam)
    return list(found[0])


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_gae_is_the_double_sum(gamma: float, lam: float) -> None:
    rng = random.Random(1)
    for length in (1, 2, 7, 40):
        values = [rng.gauss(0, 1) for _ in range(length)]
        assert one(1.5, values, gamma, lam) == pytest.approx(double_sum(1.5, values, gamma, lam), abs=1e-12)


def test_gae_of_completions_of_different_lengths() -> None:
    rng = random.Random(2)
    lengths, rewards = [3, 7, 1, 0], [1.0, -0.5, 2.0, 4.0]
    values = [[rng.gauss(0, 1) for _ in range(length)] for length in lengths]
    padded = np.array([row + [0.0] * (7 - len(row)) for row in values])
    found = gae(np.array(rewards), padded, np.array(lengths), 0.9, 0.8)
    for row, reward, mine in zip(found, rewards, values, strict=True):
        expected = double_sum(reward, mine, 0.9, 0.8) if mine else []
        assert list(row[: len(mine)]) == pytest.approx(expected, abs=1e-12)
        assert not row[len(mine) :].any()


def test_gae_at_the_ends_of_lambda() -> None:
    values = [0.3, -0.2, 0.5]
    assert one(2.0, values, 1.0, 1.0) == pytest.approx([2.0 - v for v in values])
    assert one(2.0, values, 0.9, 1.0) == pytest.approx([0.81 * 2 - 0.3, 0.9 * 2 + 0.2, 2 - 0.5])
    assert one(2.0, values, 0.9, 0.0) == pytest.approx([0.9 * -0.2 - 0.3, 0.9 * 0.5 + 0.2, 2.0 - 0.5])
    assert one(2.0, [], 1.0, 1.0) == []


class Ranks:
    """Ranks one after the other, each with its own values; sums are over all of them, as found in a first pass."""

    def __init__(self, values: list[list[float]]) -> None:
        self._values = values
        self._sums: list[np.ndarray] = []

    def run(self, works: list[PlannedRows], signals: list[Returns]) -> list[tuple[Targets, dict[str, float]]]:
        for _ in range(3):  # means are known after the first pass, squares after the second
            totals: list[np.ndarray] = []
            results = []
            for rank, (work, signal) in enumerate(zip(works, signals, strict=True)):
                self._rank, self._calls, self._totals = rank, 0, totals
                results.append(signal.prepare(self, work, None))
            self._sums = totals
        return results

    def values(self, planned: PlannedRows) -> np.ndarray:
        return np.array(self._values[self._rank], dtype=np.float32)

    def total(self, values: np.ndarray) -> np.ndarray:
        call, self._calls = self._calls, self._calls + 1
        if self._rank == 0:
            self._totals.append(np.array(values))
        else:
            self._totals[call] = self._totals[call] + values
        return self._sums[call] if call < len(self._sums) else np.array(values)


def prepared(values: list[list[float]], rewards: list[float], loss: Ppo, num_ranks: int = 1) -> Any:
    """Targets and metrics of each rank; completions are dealt out to the ranks in order."""
    rows = rows_of([Row((1,), (2,) * len(each), (-1.0,) * len(each)) for each in values])
    signal = Returns(np.array(rewards), loss.gamma, loss.lam, loss.whiten)
    parts = np.array_split(np.arange(len(values)), num_ranks)
    works = [PlannedRows(rows.take(part), (len(part),)) for part in parts]
    own = [[float(np.float32(v)) for i in part for v in values[i]] for part in parts]
    return Ranks(own).run(works, [signal.take(part) for part in parts])


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_whitened_advantages_have_mean_0_and_spread_1_over_all_tokens_of_all_ranks(num_ranks: int) -> None:
    values = [[1.0, 2.0], [4.0], [-3.0, 0.0, 9.0]]
    found = prepared(values, [0.5, 1.0, -1.0], Ppo(), num_ranks)
    flat = torch.tensor(np.concatenate([targets.advantages for targets, _ in found]))
    assert len(flat) == 6
    assert flat.mean().item() == pytest.approx(0, abs=1e-12)
    assert flat.std().item() == pytest.approx(1, abs=1e-6)
    raw = prepared(values, [0.5, 1.0, -1.0], Ppo(whiten=False))[0][0].advantages
    torch.testing.assert_close(flat, torch.tensor((raw - raw.mean()) / (raw.std(ddof=1) + 1e-8)))


def test_a_single_token_is_not_whitened_and_equal_ones_become_0() -> None:
    assert prepared([[-2.0]], [1.0], Ppo())[0][0].advantages.tolist() == [3.0]
    equal = prepared([[0.0, 0.0], [0.0]], [2.0, 2.0], Ppo(lam=1.0))[0][0]
    assert equal.advantages.tolist() == [0.0, 0.0, 0.0]


def test_surrogate_and_value_loss_equal_the_formulas_token_by_token() -> None:
    generator = torch.Generator().manual_seed(0)
    shape, lengths = (3, 5), [5, 2, 4]

    def draw() -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    mask = (torch.arange(5) < torch.tensor(lengths)[:, None]).double()
    behaviour, advantages, returns = draw() - 2, draw(), draw()
    logprobs, values = (behaviour + 0.4 * draw()).requires_grad_(), draw().requires_grad_()
    loss = Ppo(clip_low=0.2, clip_high=0.3, value_weight=0.7)
    micro = MicroBatch(logprobs, mask, None, CriticTensors(behaviour, advantages, values, returns))
    result = loss.loss_sum(micro)
    expected, squares = 0.0, 0.0
    slope = torch.zeros(shape, dtype=torch.float64)
    for n, length in enumerate(lengths):
        for t in range(length):
            ratio, a = math.exp(float(logprobs.detach()[n, t] - behaviour[n, t])), float(advantages[n, t])
            expected -= min(ratio * a, min(max(ratio, 0.8), 1.3) * a)
            error = float(values.detach()[n, t] - returns[n, t])
            squares += error**2
            slope[n, t] = 2 * 0.7 * error
    assert result.loss.item() == pytest.approx(expected + 0.7 * squares, abs=1e-10)
    value, count = result.metrics["value_loss"]
    assert (value.item(), count.item()) == (pytest.approx(squares), sum(lengths))
    result.loss.backward()
    # Values go down where they were too high; the surrogate does not touch them.
    torch.testing.assert_close(values.grad, slope)
    assert loss.normalizer(11, 3) == 11


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_targets_of_a_batch_against_loops(num_ranks: int) -> None:
    values, rewards = [[0.1, 0.4, 0.2], [0.9], [-0.3, 0.6]], [1.0, 0.0, 0.5]
    found = prepared(values, rewards, Ppo(gamma=0.9, lam=0.5, whiten=False), num_ranks)
    expected = [double_sum(r, v, 0.9, 0.5) for r, v in zip(rewards, values, strict=True)]
    flat = [a for each in expected for a in each]
    assert np.concatenate([targets.advantages for targets, _ in found]) == pytest.approx(flat)
    returns = torch.tensor([a + v for each in zip(expected, values, strict=True) for a, v in zip(*each, strict=True)])
    old = torch.tensor([v for row in values for v in row])
    variance = 1 - (returns - old).var(correction=0) / returns.var(correction=0)
    for _, metrics in found:
        assert metrics["explained_variance"] == pytest.approx(variance.item(), abs=1e-5)
        assert metrics["value_mean"] == pytest.approx(old.mean().item(), abs=1e-6)
        assert metrics["return_mean"] == pytest.approx(returns.mean().item(), abs=1e-6)
    # Whitening changes what the policy learns from, never what the values should have been.
    white = prepared(values, rewards, Ppo(gamma=0.9, lam=0.5), num_ranks)
    for (ours, _), (theirs, _) in zip(found, white, strict=True):
        assert ours.returns.tolist() == theirs.returns.tolist()
        assert ours.advantages.tolist() != theirs.advantages.tolist()


def test_in_a_micro_batch_each_value_belongs_to_its_token() -> None:
    values = [[-0.3, 0.6], [0.1, 0.4, 0.2], [0.9]]
    ((targets, _),) = prepared(values, [0.5, 1.0, 0.0], Ppo(gamma=0.9, lam=0.5, whiten=False))
    data = collate(rows_of([Row((1,), (2, 2, 2), (-1.0,) * 3), Row((1,), (2,), (-1.0,))]), 0)
    now = torch.tensor([0.1, 0.4, 0.2, 0.9])
    tensors = targets.tensors(MicroBatchPart(slice(1, 3), slice(2, 6), data.behaviour_NT, now, data.scatter))
    torch.testing.assert_close(tensors.values_NT, torch.tensor([[0.1, 0.4, 0.2], [0.9, 0.0, 0.0]]))
    expected = [double_sum(1.0, values[1], 0.9, 0.5), [*double_sum(0.0, values[2], 0.9, 0.5), 0.0, 0.0]]
    torch.testing.assert_close(tensors.advantages_NT, torch.tensor(expected))


def test_explained_variance_is_unknown_where_all_returns_are_equal() -> None:
    ((_, metrics),) = prepared([[0.25, 0.5]], [1.0], Ppo(lam=1.0))
    assert math.isnan(metrics["explained_variance"])
    assert metrics["return_mean"] == 1.0


def test_returns_use_groups_with_equal_rewards_or_one_completion() -> None:
    answer = Completion.single((2, 3), (-1.0, -1.0), "x", "stop", 0, 0)
    alike, unknown = (group(0, (1,), [answer, answer], rewards) for rewards in ((1.0, 1.0), (math.nan, 0.5)))
    nothing = group(0, (1,), [answer], [math.nan])
    loss = Ppo()
    assert loss.min_group_size == 1
    reasons = [Returns.reason_against(each, SignalConfig()) for each in (alike, unknown, nothing)]
    assert reasons == ["", "", "unscorable"]
    batch = make_batch([alike, unknown], loss, 0)
    assert batch.signal == Returns(np.array([1.0, 1.0, 0.5]), 1.0, 0.95, True)
    assert batch.without_idle() is batch


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 1.5}, "loss.gamma is 1.5; it must be between 0 and 1"),
        ({"lam": math.nan}, "loss.lam is nan; it must be between 0 and 1"),
        ({"value_weight": 0.0}, "loss.value_weight is 0.0; it must be above 0"),
        ({"value_lr": math.inf}, "loss.value_lr is inf; it must be above 0 and finite"),
        ({"clip_low": 0.0}, "loss.clip_low is 0.0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Ppo(**options)
    assert str(error.value).startswith(message)
