"""Losses against a second derivation: loops over plain Python floats (float64), written from the formulas."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from volley.learner.losses import LOSSES
from volley.learner.losses.common import LossSum, MicroBatch
from volley.learner.losses.policy.cispo import Cispo
from volley.learner.losses.policy.dapo import Dapo
from volley.learner.losses.policy.dr_grpo import DrGrpo
from volley.learner.losses.policy.grpo import Grpo
from volley.learner.losses.policy.gspo import Gspo
from volley.learner.losses.policy.reinforce_pp import ReinforcePP
from volley.learner.losses.policy.rloo import Rloo
from volley.learner.losses.sft import Sft
from volley.learner.signals.advantages import SampledTensors, scaled_by_spread
from volley.learner.signals.kl import kl_estimate
from volley.rollout.errors import ConfigError

LENGTHS = (5, 1, 3)
ADVANTAGES = (1.3, -0.7, -0.2)


def random_micro(seed: int, spread: float = 0.3, dtype: torch.dtype = torch.float64) -> MicroBatch[SampledTensors]:
    generator = torch.Generator().manual_seed(seed)
    behaviour = -3 * torch.rand(len(LENGTHS), max(LENGTHS), generator=generator, dtype=torch.float64)
    noise = torch.randn(2, *behaviour.shape, generator=generator, dtype=torch.float64) * spread
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return MicroBatch(
        logprobs_NT=(behaviour + noise[0]).to(dtype).requires_grad_(),
        mask_NT=mask.to(dtype),
        reference_NT=(behaviour + noise[1]).to(dtype),
        signal=SampledTensors(behaviour.to(dtype), torch.tensor(ADVANTAGES, dtype=dtype)[:, None]),
    )


def by_hand(
    micro: MicroBatch[SampledTensors], clip_low: float, clip_high: float, beta: float = 0.0, kl: str = "k3"
) -> dict[str, float]:
    """loss, its gradient with respect to each log-prob, and the metrics, token by token."""
    loss, clipped_tokens, kl_sum, tokens = 0.0, 0, 0.0, 0
    gradient = [[0.0] * max(LENGTHS) for _ in LENGTHS]
    for i, length in enumerate(LENGTHS):
        advantage = micro.signal.advantages_NT[i, 0].item()
        for t in range(length):
            pi, mu = micro.logprobs_NT[i, t].item(), micro.signal.behaviour_NT[i, t].item()
            rho = math.exp(pi) / math.exp(mu)
            limited = min(max(rho, 1 - clip_low), 1 + clip_high)
            if rho * advantage <= limited * advantage:
                loss -= rho * advantage
                gradient[i][t] -= rho * advantage
            else:
                loss -= limited * advantage
                clipped_tokens += 1
            d = micro.reference_NT[i, t].item() - pi
            value, slope = {
                "k1": (-d, 1.0),
                "k2": (d * d / 2, -d),
                "k3": (math.exp(d) - d - 1, 1 - math.exp(d)),
            }[kl]
            loss += beta * value
            gradient[i][t] += beta * slope
            kl_sum += math.exp(d) - d - 1
            tokens += 1
    return {"loss": loss, "gradient": gradient, "clip_share": clipped_tokens / tokens, "kl": kl_sum / tokens}


def assert_same(result: LossSum, micro: MicroBatch[SampledTensors], expected: dict[str, float]) -> None:
    assert result.loss.item() == pytest.approx(expected["loss"], rel=1e-10)
    (gradient,) = torch.autograd.grad(result.loss, micro.logprobs_NT)
    torch.testing.assert_close(
        gradient, torch.tensor(expected["gradient"], dtype=torch.float64), rtol=1e-10, atol=1e-12
    )
    for name, (value, count) in result.metrics.items():
        assert value.item() / count.item() == pytest.approx(expected[name], rel=1e-10)
        assert not value.requires_grad


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([0.0, 0.05, 0.3, 2.0]),
    clip_low=st.floats(0.01, 1.0),
    clip_high=st.floats(0.01, 3.0),
    beta=st.sampled_from([0.0, 0.04, 1.0]),
    kl=st.sampled_from(["k1", "k2", "k3"]),
)
def test_grpo_is_the_formula(seed, spread, clip_low, clip_high, beta, kl):
    micro = random_micro(seed, spread)
    loss = Grpo(clip_low, clip_high, beta, kl)
    assert_same(loss.loss_sum(micro), micro, by_hand(micro, clip_low, clip_high, beta, kl))
    assert loss.needs_reference == (beta > 0)


@pytest.mark.parametrize(
    ("loss", "clip"),
    [
        (Grpo(), (0.2, 0.2)),
        (Dapo(), (0.2, 0.28)),
        (DrGrpo(max_tokens=9), (0.2, 0.2)),
        (Rloo(), (0.2, 0.2)),
        (ReinforcePP(), (0.2, 0.2)),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_policy_losses_with_their_defaults(loss, clip, seed):
    micro = random_micro(seed, spread=0.6)
    result = loss.loss_sum(micro)
    assert_same(result, micro, by_hand(micro, *clip))
    assert 0 < result.metrics["clip_share"][0] < sum(LENGTHS), "the test must see clipped and free tokens"


@pytest.mark.parametrize("seed", range(5))
def test_reinforce_pp_is_its_formula(seed):
    """From rewards of two groups to the sum, with the paper's KL estimator: the spread is that of both groups."""
    rewards = ((1.0, 0.0, 0.2), (0.5, 0.5))
    centred = [reward - sum(group) / len(group) for group in rewards for reward in group]
    std = math.sqrt(sum(value**2 for value in centred) / (len(centred) - 1))
    loss = ReinforcePP(beta=0.04)
    advantages = scaled_by_spread([value for group in rewards for value in loss.advantages(group)])
    assert loss.whitens
    assert advantages == pytest.approx([value / (std + 1e-8) for value in centred])
    micro = random_micro(seed, 0.6)
    advantages_NT = torch.tensor(advantages[:3], dtype=torch.float64)[:, None]
    micro = dataclasses.replace(micro, signal=dataclasses.replace(micro.signal, advantages_NT=advantages_NT))
    assert_same(loss.loss_sum(micro), micro, by_hand(micro, 0.2, 0.2, beta=0.04, kl="k2"))


def test_clip_higher_lets_rare_tokens_rise_further():
    ratio = 1.25
    micro = MicroBatch(
        logprobs_NT=torch.tensor([[math.log(ratio)]], requires_grad=True),
        mask_NT=torch.ones(1, 1),
        reference_NT=None,
        signal=SampledTensors(torch.zeros(1, 1), torch.ones(1, 1)),
    )
    for loss, expected in ((Grpo(), 0.0), (Dapo(), -ratio)):
        (gradient,) = torch.autograd.grad(loss.loss_sum(micro).loss, micro.logprobs_NT)
        assert gradient.item() == pytest.approx(expected)


def log_ratios(micro: MicroBatch[SampledTensors]) -> list[list[float]]:
    gaps = (micro.logprobs_NT - micro.signal.behaviour_NT).tolist()
    return [gaps[i][:length] for i, length in enumerate(LENGTHS)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spread", [1e-4, 0.3])
def test_gspo_weighs_whole_sequences(seed, spread):
    micro = random_micro(seed, spread)
    loss, gradient = 0.0, torch.zeros_like(micro.logprobs_NT)
    for i, gaps in enumerate(log_ratios(micro)):
        s, advantage = math.exp(sum(gaps) / len(gaps)), micro.signal.advantages_NT[i, 0].item()
        limited = min(max(s, 1 - 3e-4), 1 + 4e-4)
        loss -= min(s * advantage, limited * advantage)
        if s * advantage <= limited * advantage:
            gradient[i, : len(gaps)] = -s * advantage / len(gaps)
    result = Gspo().loss_sum(micro)
    assert result.loss.item() == pytest.approx(loss, rel=1e-10)
    torch.testing.assert_close(torch.autograd.grad(result.loss, micro.logprobs_NT)[0], gradient, rtol=1e-9, atol=1e-12)
    assert Gspo().normalizer(70, 6) == 6


@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
def test_gspo_takes_the_kl_as_a_mean_of_each_sequence(kl):
    """As everything else of it, which is divided by the sequences; a sum would grow with the length."""
    micro, beta = random_micro(0), 0.3
    expected, slopes = 0.0, torch.zeros_like(micro.logprobs_NT)
    for i, length in enumerate(LENGTHS):
        for t in range(length):
            d = micro.reference_NT[i, t].item() - micro.logprobs_NT[i, t].item()
            value, slope = {"k1": (-d, 1.0), "k2": (d * d / 2, -d), "k3": (math.exp(d) - d - 1, 1 - math.exp(d))}[kl]
            expected += beta * value / length
            slopes[i, t] = beta * slope / length
    without = Gspo().loss_sum(micro).loss
    difference = Gspo(beta=beta, kl=kl).loss_sum(micro).loss - without
    assert difference.item() == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(torch.autograd.grad(difference, micro.logprobs_NT)[0], slopes)


@pytest.mark.parametrize("seed", range(5))
def test_cispo_caps_the_weight_and_keeps_every_gradient(seed):
    micro = random_micro(seed, spread=2.0)
    gradient = torch.zeros_like(micro.logprobs_NT)
    for i, gaps in enumerate(log_ratios(micro)):
        for t, gap in enumerate(gaps):
            gradient[i, t] = -min(math.exp(gap), 1.1) * micro.signal.advantages_NT[i, 0].item()
    result = Cispo(cap=1.1).loss_sum(micro)
    expected = sum(
        gradient[i, t].item() * micro.logprobs_NT[i, t].item() for i, n in enumerate(LENGTHS) for t in range(n)
    )
    assert result.loss.item() == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(torch.autograd.grad(result.loss, micro.logprobs_NT)[0], gradient)
    assert result.metrics["clip_share"][0] > 0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("guard", ["tis", "icepop", "geometric"])
@pytest.mark.parametrize("kind", [Grpo, Dapo, Rloo, ReinforcePP])
def test_guards_weigh_the_plain_policy_gradient(kind, guard, seed):
    """Against sg(pi) the ratio is 1 and nothing is clipped: what is left is w_t A grad log pi."""
    micro = guarded_micro(seed, guard)
    gradient, changed = torch.zeros_like(micro.logprobs_NT), 0
    for i, weights in enumerate(guard_weights(micro, guard)):
        for t, (weight, r) in enumerate(weights):
            changed += weight != (1.0 if guard == "geometric" else r)
            gradient[i, t] = -weight * micro.signal.advantages_NT[i, 0].item()
    result = kind(guard=guard).loss_sum(micro)
    torch.testing.assert_close(torch.autograd.grad(result.loss, micro.logprobs_NT)[0], gradient)
    assert result.loss.item() == pytest.approx(gradient.sum().item(), rel=1e-10), "a ratio of 1 leaves w_t A"
    assert result.metrics["guard_share"][0].item() == changed
    assert result.metrics["clip_share"][0].item() == 0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("guard", ["tis", "icepop", "geometric"])
def test_a_guarded_gspo_weighs_a_sequence_by_the_mean_of_its_tokens(guard, seed):
    micro = guarded_micro(seed, guard)
    expected, gradient = 0.0, torch.zeros_like(micro.logprobs_NT)
    for i, weights in enumerate(guard_weights(micro, guard)):
        weight = sum(each for each, _ in weights) / len(weights)
        expected -= weight * micro.signal.advantages_NT[i, 0].item()
        gradient[i, : len(weights)] = -weight * micro.signal.advantages_NT[i, 0].item() / len(weights)
    result = Gspo(guard=guard).loss_sum(micro)
    assert result.loss.item() == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(torch.autograd.grad(result.loss, micro.logprobs_NT)[0], gradient, rtol=1e-9, atol=1e-12)
    assert result.metrics["clip_share"][0].item() == 0


@pytest.mark.parametrize("kind", [Grpo, Gspo])
def test_a_guard_leaves_the_kl_term_alone(kind):
    micro = guarded_micro(0, "tis")
    alone = kind(guard="tis").loss_sum(micro).loss
    both = kind(guard="tis", beta=0.3).loss_sum(micro).loss
    term = kind(beta=0.3).loss_sum(micro).loss - kind().loss_sum(micro).loss
    assert both.item() - alone.item() == pytest.approx(term.item(), rel=1e-10)
    assert term.item() > 0


def guarded_micro(seed: int, guard: str) -> MicroBatch[SampledTensors]:
    return random_micro(seed, spread=1.0 if guard != "geometric" else 0.03)


def guard_weights(micro: MicroBatch[SampledTensors], guard: str) -> list[list[tuple[float, float]]]:
    """By hand: each token's weight and ratio."""
    found = []
    for gaps in log_ratios(micro):
        mean, ratios = math.exp(sum(gaps) / len(gaps)), [math.exp(gap) for gap in gaps]
        found.append(
            [
                (
                    {
                        "tis": min(r, 2.0),
                        "icepop": r if 0.5 <= r <= 5.0 else 0.0,
                        "geometric": float(0.99 <= mean <= 1.01),
                    }[guard],
                    r,
                )
                for r in ratios
            ]
        )
    return found


def test_sft_is_the_negative_log_likelihood():
    micro = random_micro(0)
    expected = -sum(micro.logprobs_NT[i, t].item() for i, length in enumerate(LENGTHS) for t in range(length))
    result = Sft().loss_sum(micro)
    assert result.loss.item() == pytest.approx(expected, rel=1e-12)
    (gradient,) = torch.autograd.grad(result.loss, micro.logprobs_NT)
    assert torch.equal(gradient, -micro.mask_NT)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("loss", [Grpo(beta=0.1), Dapo(), DrGrpo(max_tokens=9), Rloo(), Sft()])
def test_float32_is_close_to_float64(loss, seed):
    exact = loss.loss_sum(random_micro(seed)).loss.item()
    assert loss.loss_sum(random_micro(seed, dtype=torch.float32)).loss.item() == pytest.approx(
        exact, rel=1e-5, abs=1e-5
    )


def test_advantages_equal_the_formulas_of_the_papers():
    rewards = [1.0, 0.0, 0.0, 0.5]
    mean = sum(rewards) / 4
    std = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / 3)
    relative = [(reward - mean) / (std + 1e-4) for reward in rewards]
    assert Grpo().advantages(rewards) == pytest.approx(relative)
    assert Dapo().advantages(rewards) == pytest.approx(relative)
    assert DrGrpo().advantages(rewards) == pytest.approx([reward - mean for reward in rewards])
    assert Rloo().advantages(rewards) == pytest.approx([(4 * reward - sum(rewards)) / 3 for reward in rewards])


def test_normalizers():
    for loss in (Grpo(), Dapo(), Rloo(), Sft()):
        assert loss.normalizer(num_tokens=70, num_sequences=6) == 70
    assert DrGrpo(max_tokens=32).normalizer(num_tokens=70, num_sequences=6) == 6 * 32
    with pytest.raises(AssertionError, match=r"rollout\.max_tokens"):
        DrGrpo().normalizer(70, 6)


def test_dr_grpo_gives_tokens_equal_weight_in_short_and_long_responses():
    def gradient(lengths: tuple[int, ...]) -> Tensor:
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).double()
        logprobs = torch.zeros_like(mask, requires_grad=True)
        micro = MicroBatch(logprobs, mask, None, SampledTensors(torch.zeros_like(mask), torch.ones(len(lengths), 1)))
        loss = DrGrpo(max_tokens=50)
        total = loss.loss_sum(micro).loss / loss.normalizer(sum(lengths), len(lengths))
        return torch.autograd.grad(total, logprobs)[0]

    assert gradient((2, 10))[0, 0] == gradient((2, 40))[0, 0] == gradient((2, 40))[1, 39] != 0


@pytest.mark.parametrize(("kind", "expected"), [("k1", "nothing"), ("k2", "pi || ref"), ("k3", "ref || pi")])
def test_expected_gradients_of_the_kl_estimators(kind, expected):
    """Exact expectation over a vocabulary of six, as the docstring of `kl_estimate` states it."""
    torch.manual_seed(0)
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(6, dtype=torch.float64).log_softmax(0)
    policy = logits.log_softmax(0)
    surrogate = (policy.detach().exp() * kl_estimate(kind, policy[None], reference[None])[0]).sum()
    divergence = {
        "nothing": (0 * policy).sum(),
        "pi || ref": (policy.exp() * (policy - reference)).sum(),
        "ref || pi": (reference.exp() * (reference - policy)).sum(),
    }[expected]
    (got,) = torch.autograd.grad(surrogate, logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(divergence, logits)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("grpo", {"clip_low": 0.0}, "loss.clip_low is 0.0; it must be above 0 and at most 1"),
        ("dapo", {"clip_low": 1.5}, "loss.clip_low is 1.5; it must be"),
        ("rloo", {"clip_high": -0.1}, "loss.clip_high is -0.1; it must be above 0"),
        ("dr_grpo", {"clip_high": math.nan}, "loss.clip_high is nan; it must be"),
        ("grpo", {"beta": -1.0}, "loss.beta is -1.0; it must be 0"),
        ("grpo", {"kl": "k4"}, "loss.kl is 'k4'; it must be one of k1, k2, k3"),
        ("dr_grpo", {"max_tokens": -1}, "loss.max_tokens is -1; it must be"),
    ],
)
def test_options_out_of_range_are_refused(name, options, message):
    with pytest.raises(ConfigError) as error:
        LOSSES[name](**options)
    assert str(error.value).startswith(message)
