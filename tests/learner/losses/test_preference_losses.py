"""Losses over pairs and labels against a second derivation: loops over plain floats, written from the formulas."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from volley.learner.losses.common import Loss, MicroBatch
from volley.learner.losses.preference.dpo import Dpo
from volley.learner.losses.preference.ipo import Ipo
from volley.learner.losses.preference.kto import Kto
from volley.learner.losses.preference.orpo import Orpo
from volley.learner.losses.preference.simpo import SimPo
from volley.learner.signals.labels import LabelTensors
from volley.learner.signals.pairs import PairTensors
from volley.rollout.errors import ConfigError

LENGTHS = (5, 1, 3, 4)
PAIRS = ((0, 1), (3, 2), (0, 2))
LABELS = (True, False, False, True)
BASELINE = 0.7


def random_micro(seed: int, spread: float = 0.5) -> MicroBatch[PairTensors]:
    generator = torch.Generator().manual_seed(seed)
    policy = -2 * torch.rand(len(LENGTHS), max(LENGTHS), generator=generator, dtype=torch.float64) - 0.05
    noise = torch.randn(policy.shape, generator=generator, dtype=torch.float64) * spread
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return MicroBatch(
        policy.requires_grad_(),
        mask.double(),
        (policy + noise).detach(),
        PairTensors(torch.tensor(PAIRS)),
    )


def labelled(micro: MicroBatch[Any]) -> MicroBatch[LabelTensors]:
    labels = LabelTensors(torch.tensor(LABELS, dtype=torch.float64), BASELINE)
    return MicroBatch(micro.logprobs_NT, micro.mask_NT, micro.reference_NT, labels)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


class Row:
    """A completion's log-probs, as lists."""

    def __init__(self, micro: MicroBatch[Any], index: int) -> None:
        length = LENGTHS[index]
        self.policy = micro.logprobs_NT[index, :length].tolist()
        self.reference = micro.reference_NT[index, :length].tolist()
        self.length = length
        self.total = sum(self.policy)
        self.mean = self.total / length
        self.log_ratio = self.total - sum(self.reference)


def dpo(beta: float, smoothing: float) -> Callable[[Row, Row], float]:
    def pair(w: Row, lost: Row) -> float:
        h = beta * (w.log_ratio - lost.log_ratio)
        return -(1 - smoothing) * math.log(sigmoid(h)) - smoothing * math.log(sigmoid(-h))

    return pair


def ipo(tau: float, reduction: str) -> Callable[[Row, Row], float]:
    def pair(w: Row, lost: Row) -> float:
        sides = [row.log_ratio / (row.length if reduction == "mean" else 1) for row in (w, lost)]
        return (sides[0] - sides[1] - 1 / (2 * tau)) ** 2

    return pair


def simpo(beta: float, gamma: float) -> Callable[[Row, Row], float]:
    return lambda w, lost: -math.log(sigmoid(beta * w.mean - beta * lost.mean - gamma))


def orpo(weight: float) -> Callable[[Row, Row], float]:
    def odds(row: Row) -> float:
        p = math.exp(row.mean)
        return p / (1 - p)

    return lambda w, lost: -w.mean - weight * math.log(sigmoid(math.log(odds(w) / odds(lost))))


PAIR_LOSSES: list[tuple[Loss, Any]] = [
    (Dpo(), dpo(0.1, 0.0)),
    (Dpo(beta=0.5, label_smoothing=0.2), dpo(0.5, 0.2)),
    (Ipo(), ipo(0.1, "sum")),
    (Ipo(tau=0.4, reduction="mean"), ipo(0.4, "mean")),
    (SimPo(), simpo(2.0, 1.0)),
    (SimPo(beta=10.0, gamma=0.0), simpo(10.0, 0.0)),
    (Orpo(), orpo(0.1)),
    (Orpo(odds_weight=2.0), orpo(2.0)),
]


def numeric_gradient(micro: MicroBatch[Any], value: Callable[[MicroBatch[Any]], float]) -> torch.Tensor:
    """By central differences of the formula, not of the code under test."""
    gradient, step = torch.zeros_like(micro.logprobs_NT), 1e-5
    for i, length in enumerate(LENGTHS):
        for t in range(length):
            sides = []
            for sign in (1, -1):
                moved = micro.logprobs_NT.detach().clone()
                moved[i, t] += sign * step
                other = MicroBatch(moved, *[getattr(micro, name) for name in MicroBatch.__slots__[1:]])
                sides.append(value(other))
            gradient[i, t] = (sides[0] - sides[1]) / (2 * step)
    return gradient


@pytest.mark.parametrize(
    ("loss", "formula"), PAIR_LOSSES, ids=lambda each: repr(each) if hasattr(each, "signal") else ""
)
@pytest.mark.parametrize("seed", range(4))
def test_pair_losses_are_their_formulas(loss: Loss, formula: Any, seed: int) -> None:
    def by_hand(micro: MicroBatch[Any]) -> float:
        return sum(formula(Row(micro, w), Row(micro, lost)) for w, lost in PAIRS)

    micro = random_micro(seed)
    result = loss.loss_sum(micro)
    assert result.loss.item() == pytest.approx(by_hand(micro), rel=1e-10)
    (gradient,) = torch.autograd.grad(result.loss, micro.logprobs_NT)
    torch.testing.assert_close(gradient, numeric_gradient(micro, by_hand), rtol=1e-5, atol=1e-8)
    assert loss.normalizer(99, 98, len(PAIRS)) == len(PAIRS)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    beta=st.floats(0.01, 2.0),
    desirable=st.floats(0.1, 4.0),
    undesirable=st.floats(0.1, 4.0),
)
def test_kto_is_its_formula(seed: int, beta: float, desirable: float, undesirable: float) -> None:
    def by_hand(micro: MicroBatch[Any]) -> float:
        total = 0.0
        for i, label in enumerate(LABELS):
            r = Row(micro, i).log_ratio
            total += (
                desirable * (1 - sigmoid(beta * (r - BASELINE)))
                if label
                else undesirable * (1 - sigmoid(beta * (BASELINE - r)))
            )
        return total

    micro = labelled(random_micro(seed))
    result = Kto(beta, desirable, undesirable).loss_sum(micro)
    assert result.loss.item() == pytest.approx(by_hand(micro), rel=1e-10)
    (gradient,) = torch.autograd.grad(result.loss, micro.logprobs_NT)
    torch.testing.assert_close(gradient, numeric_gradient(micro, by_hand), rtol=1e-4, atol=1e-7)
    rewards = [beta * Row(micro, i).log_ratio for i in range(4)]
    value, count = result.metrics["implicit_reward_desirable"]
    assert value.item() / count.item() == pytest.approx((rewards[0] + rewards[3]) / 2)


@pytest.mark.parametrize("seed", range(3))
def test_metrics_of_the_family(seed: int) -> None:
    micro = random_micro(seed)
    rows = [Row(micro, i) for i in range(4)]
    metrics = {name: (value / count).item() for name, (value, count) in Dpo(beta=0.3).loss_sum(micro).metrics.items()}
    margins = [0.3 * (rows[w].log_ratio - rows[lost].log_ratio) for w, lost in PAIRS]
    assert metrics["implicit_margin"] == pytest.approx(sum(margins) / 3)
    assert metrics["preference_accuracy"] == pytest.approx(sum(margin > 0 for margin in margins) / 3)
    assert metrics["chosen_logprob"] == pytest.approx(sum(rows[w].mean for w, _ in PAIRS) / 3)
    assert metrics["rejected_logprob"] == pytest.approx(sum(rows[lost].mean for _, lost in PAIRS) / 3)


def test_initially_dpo_is_at_chance_and_ipo_at_its_margin() -> None:
    micro = random_micro(0, spread=0.0)
    result = Dpo().loss_sum(micro)
    assert result.loss.item() / 3 == pytest.approx(math.log(2))
    assert result.metrics["preference_accuracy"][0].item() / 3 == 0.5
    assert Ipo(tau=0.1).loss_sum(micro).loss.item() / 3 == pytest.approx(25.0)


def test_ipo_is_satisfied_with_its_margin_where_dpo_is_not() -> None:
    """The gradient at D = 1 / (2 tau) is 0 for IPO, and still pushes for DPO."""
    policy = torch.tensor([[-1.0], [-6.0]], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[-3.0], [-3.0]], dtype=torch.float64)
    ones = torch.ones(2, 1, dtype=torch.float64)
    micro = MicroBatch(policy, ones, reference, PairTensors(torch.tensor([[0, 1]])))
    (still,) = torch.autograd.grad(Ipo(tau=0.1).loss_sum(micro).loss, policy)
    (pushed,) = torch.autograd.grad(Dpo(beta=0.1).loss_sum(micro).loss, policy)
    assert still.abs().max() < 1e-12
    assert pushed[0].item() < -0.03


def test_simpo_is_independent_of_the_length() -> None:
    mask = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    micro = MicroBatch(torch.full((2, 2), -0.5), mask, None, PairTensors(torch.tensor([[0, 1]])))
    loss = SimPo(gamma=0.0).loss_sum(micro).loss
    assert loss.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dpo(beta=0), "loss.beta is 0"),
        (lambda: Dpo(label_smoothing=0.5), "below 0.5"),
        (lambda: Ipo(tau=-1), "loss.tau"),
        (lambda: Ipo(reduction="max"), "sum, mean"),
        (lambda: SimPo(gamma=-1), "loss.gamma"),
        (lambda: Orpo(odds_weight=math.inf), "loss.odds_weight"),
        (lambda: Kto(desirable_weight=0), "loss.desirable_weight"),
    ],
)
def test_impossible_options_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
