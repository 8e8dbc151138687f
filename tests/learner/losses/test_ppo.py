"""PPO against derivations straight from the formulas, in float64 and with loops."""

import math
import random

import pytest
import torch

from volley.learner.compute.packing import collate
from volley.learner.config import SignalConfig
from volley.learner.losses.common import Critic, MicroBatch
from volley.learner.losses.policy.ppo import Ppo
from volley.learner.signals.advantages import gae, whitened
from volley.learner.signals.batch import Batch, Rewards, Row, Targets, make_batch, reason_against
from volley.learner.signals.critic import critic_of, with_targets
from volley.rollout.errors import ConfigError
from volley.rollout.types import Completion, Prompt, Score, ScoredGroup, as_token_ids


def double_sum(reward: float, values: list[float], gamma: float, lam: float) -> list[float]:
    """Equation 16 as it stands: sums of all later temporal differences."""
    length = len(values)
    rewards, after = [0.0] * (length - 1) + [reward], [*values[1:], 0.0]
    deltas = [r + gamma * v_next - v for r, v_next, v in zip(rewards, after, values, strict=True)]
    return [math.fsum((gamma * lam) ** k * deltas[t + k] for k in range(length - t)) for t in range(length)]


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_gae_is_the_double_sum(gamma: float, lam: float) -> None:
    rng = random.Random(1)
    for length in (1, 2, 7, 40):
        values = [rng.gauss(0, 1) for _ in range(length)]
        assert gae(1.5, values, gamma, lam) == pytest.approx(double_sum(1.5, values, gamma, lam), abs=1e-12)


def test_gae_at_the_ends_of_lambda() -> None:
    values = [0.3, -0.2, 0.5]
    assert gae(2.0, values, 1.0, 1.0) == pytest.approx([2.0 - v for v in values])
    assert gae(2.0, values, 0.9, 1.0) == pytest.approx([0.81 * 2 - 0.3, 0.9 * 2 + 0.2, 2 - 0.5])
    assert gae(2.0, values, 0.9, 0.0) == pytest.approx([0.9 * -0.2 - 0.3, 0.9 * 0.5 + 0.2, 2.0 - 0.5])
    assert gae(2.0, [], 1.0, 1.0) == []


def test_whitened_advantages_have_mean_0_and_spread_1_over_all_tokens() -> None:
    result = whitened([[1.0, 2.0], [4.0], [-3.0, 0.0, 9.0]])
    flat = torch.tensor([value for row in result for value in row], dtype=torch.float64)
    assert [len(row) for row in result] == [2, 1, 3]
    assert flat.mean().item() == pytest.approx(0, abs=1e-12)
    assert flat.std().item() == pytest.approx(1, abs=1e-6)
    assert whitened([[3.0]]) == [[3.0]]
    assert whitened([[2.0, 2.0], [2.0]]) == [[0.0, 0.0], [0.0]]


def test_surrogate_and_value_loss_equal_the_formulas_token_by_token() -> None:
    generator = torch.Generator().manual_seed(0)
    shape, lengths = (3, 5), [5, 2, 4]

    def draw() -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    mask = (torch.arange(5) < torch.tensor(lengths)[:, None]).double()
    behaviour, advantages, returns = draw() - 2, draw(), draw()
    logprobs, values = (behaviour + 0.4 * draw()).requires_grad_(), draw().requires_grad_()
    loss = Ppo(clip_low=0.2, clip_high=0.3, value_weight=0.7)
    micro = MicroBatch(logprobs, behaviour, None, mask, torch.zeros(3), critic=Critic(values, advantages, returns))
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


def test_targets_of_a_batch_against_loops() -> None:
    rows = tuple(Row((1,), (2,) * length, (-1.0,) * length, 0) for length in (3, 1, 2))
    values = [[0.1, 0.4, 0.2], [0.9], [-0.3, 0.6]]
    batch = Batch(rows, Rewards((1.0, 0.0, 0.5)), {"kept": 1.0})
    found = with_targets(batch, Ppo(gamma=0.9, lam=0.5, whiten=False), values)
    assert isinstance(found.signal, Targets)
    expected = [double_sum(r, v, 0.9, 0.5) for r, v in zip((1.0, 0.0, 0.5), values, strict=True)]
    assert [list(row) for row in found.signal.advantages] == [pytest.approx(row) for row in expected]
    returns = torch.tensor([a + v for each in zip(expected, values, strict=True) for a, v in zip(*each, strict=True)])
    old = torch.tensor([v for row in values for v in row])
    variance = 1 - (returns - old).var(correction=0) / returns.var(correction=0)
    assert found.facts["explained_variance"] == pytest.approx(variance.item(), abs=1e-5)
    assert found.facts["value_mean"] == pytest.approx(old.mean().item(), abs=1e-6)
    assert found.facts["return_mean"] == pytest.approx(returns.mean().item(), abs=1e-6)
    assert found.facts["kept"] == 1.0
    # Whitening changes what the policy learns from, never what the values should have been.
    white = with_targets(batch, Ppo(gamma=0.9, lam=0.5), values).signal
    assert isinstance(white, Targets)
    assert white.returns == found.signal.returns
    assert white.advantages[0] != found.signal.advantages[0]
    # In a micro-batch each number stands beside its own token.
    data = collate(rows, [2, 0], [0.0] * 3, 0)
    critic = critic_of(found.signal, [2, 0], data, torch.tensor([-0.3, 0.6, 0.1, 0.4, 0.2]))
    torch.testing.assert_close(critic.values_NT, torch.tensor([[-0.3, 0.6, 0.0], [0.1, 0.4, 0.2]]))
    assert critic.advantages_NT[0].tolist() == pytest.approx([*expected[2], 0.0])
    assert critic.advantages_NT[1].tolist() == pytest.approx(expected[0])


def test_explained_variance_is_unknown_where_all_returns_are_equal() -> None:
    batch = Batch((Row((1,), (2, 2), (0.0, 0.0), 0),), Rewards((1.0,)))
    facts = with_targets(batch, Ppo(lam=1.0), [[0.25, 0.5]]).facts
    assert math.isnan(facts["explained_variance"])
    assert facts["return_mean"] == 1.0


def test_groups_whose_rewards_are_equal_or_of_one_answer_are_learned_from() -> None:
    prompt, answer = (
        Prompt(0, 0, "p", as_token_ids((1,)), ""),
        Completion.single((2, 3), (-1.0, -1.0), "x", "stop", 0, 0),
    )
    alike = ScoredGroup(prompt, (answer, answer), (Score(1.0, {}), Score(1.0, {})))
    unknown = ScoredGroup(prompt, (answer, answer), (Score(math.nan, {}), Score(0.5, {})))
    nothing = ScoredGroup(prompt, (answer,), (Score(math.nan, {}),))
    loss = Ppo()
    assert loss.min_group_size == 1
    reasons = [reason_against(group, loss, SignalConfig()) for group in (alike, unknown, nothing)]
    assert reasons == ["", "", "unscorable"]
    batch = make_batch([alike, unknown], loss, 0)
    assert batch.signal == Rewards((1.0, 1.0, 0.5))
    assert batch.with_gradient(loss) == batch


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
