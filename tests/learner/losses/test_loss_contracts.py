"""Properties of every registered loss. A new loss is tested here before its author writes a test."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from volley.learner.losses import LOSSES
from volley.learner.losses.common import Loss, MicroBatch
from volley.learner.losses.policy.clipped import GUARDS
from volley.learner.signals.advantages import Advantages, SampledTensors
from volley.learner.signals.batch import Signal, SignalTensors
from volley.learner.signals.demonstrations import Demonstrations
from volley.learner.signals.labels import Labels, LabelTensors
from volley.learner.signals.pairs import Pairs, PairTensors
from volley.learner.signals.returns import CriticTensors, Returns


def _variants() -> dict[str, Loss]:
    """Every loss with its defaults, and with a reference where it can have one."""
    variants: dict[str, Loss] = {}
    for name, kind in LOSSES.items():
        options = {field.name for field in dataclasses.fields(kind)}
        filled = {"max_tokens": 16} if "max_tokens" in options else {}
        variants[name] = kind(**filled)
        if "beta" in options and not variants[name].needs_reference and kind.signal in (Advantages, Returns):
            variants[f"{name} with reference"] = kind(**filled, beta=0.1)
        if "guard" in options:
            variants |= {
                f"{name} guarded by {guard}": kind(**filled, guard=guard) for guard in GUARDS if guard != "none"
            }
    return variants


VARIANTS = _variants()
every_loss = pytest.mark.parametrize("loss", VARIANTS.values(), ids=VARIANTS.keys())


@dataclasses.dataclass
class Sequences:
    """N sequences without padding: log-probs (leaves), behaviour and reference, each [T_n]; advantages [N], which a
    critic gives to each token. Each two neighbours are a pair, and every other sequence is desirable."""

    logprobs: list[Tensor]
    behaviour: list[Tensor]
    reference: list[Tensor]
    advantages: list[float]

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.logprobs))

    def micro(self, indices: list[int], loss: Loss, padding: int = 0, filler: float = 0.0) -> MicroBatch[Any]:
        longest = max(len(self.logprobs[i]) for i in indices) + padding

        def padded(parts: list[Tensor], value: float) -> Tensor:
            return torch.stack(
                [torch.cat([parts[i], parts[i].new_full((longest - len(parts[i]),), value)]) for i in indices]
            )

        return MicroBatch(
            padded(self.logprobs, filler),
            padded([torch.ones_like(part) for part in self.logprobs], 0.0),
            padded(self.reference, 0.0) if loss.needs_reference else None,
            self._signal(indices, loss, lambda parts: padded(parts, 0.0)),
        )

    def _signal(self, indices: list[int], loss: Loss, padded: Callable[[list[Tensor]], Tensor]) -> SignalTensors:
        """What each family reads."""
        advantages = torch.tensor([self.advantages[i] for i in indices], dtype=torch.float64)
        if loss.signal is Advantages:
            return SampledTensors(padded(self.behaviour), advantages[:, None])
        if loss.signal is Returns:
            each = [torch.full_like(part, a) for part, a in zip(self.behaviour, self.advantages, strict=True)]
            values, returns = [part.square() for part in self.behaviour], [part - 1 for part in self.behaviour]
            return CriticTensors(padded(self.behaviour), padded(each), padded(values), padded(returns))
        if loss.signal is Pairs:
            places = [(indices.index(i), indices.index(i + 1)) for i in indices if i % 2 == 0 and i + 1 in indices]
            return PairTensors(torch.tensor(places).view(-1, 2).long())
        if loss.signal is Labels:
            return LabelTensors(torch.tensor([float(i % 2 == 0) for i in indices], dtype=torch.float64), 0.3)
        assert loss.signal is Demonstrations, "describe the new signal here"
        return SignalTensors()


def random_sequences(seed: int, lengths: list[int], spread: float = 0.4) -> Sequences:
    generator = torch.Generator().manual_seed(seed)

    def noise(length: int) -> Tensor:
        return spread * torch.randn(length, generator=generator, dtype=torch.float64)

    behaviour = [-3 * torch.rand(n, generator=generator, dtype=torch.float64) for n in lengths]
    logprobs = [(part + noise(len(part))).requires_grad_() for part in behaviour]
    reference = [part + noise(len(part)) for part in behaviour]
    return Sequences(logprobs, behaviour, reference, noise(len(lengths)).tolist())


def totals(sequences: Sequences, loss: Loss, parts: list[list[int]], **padding) -> dict[str, Tensor]:
    """Loss, metrics and gradients of the global batch, added up over micro-batches as the learner does."""
    normalizer = loss.normalizer(sequences.num_tokens, len(sequences.logprobs), len(sequences.logprobs) // 2)
    results = [loss.loss_sum(sequences.micro(indices, loss, **padding)) for indices in parts]
    total = sum(result.loss for result in results) / normalizer
    gradients = torch.autograd.grad(total, sequences.logprobs, materialize_grads=True)
    found = {"loss": total.detach(), "gradient": torch.cat(gradients)}
    for name in results[0].metrics:
        count = sum(r.metrics[name][1] for r in results)
        found[name] = sum(r.metrics[name][0] for r in results) / count if count else torch.zeros(())
    return found


def assert_close(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-10, atol=1e-12)


@every_loss
def test_declarations(loss):
    assert issubclass(loss.signal, Signal)
    assert loss.signal.label
    assert loss.min_group_size >= 1
    assert isinstance(loss.needs_reference, bool)
    assert loss.normalizer(10, 2, 1) > 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        loss.signal = "other"


@pytest.mark.parametrize("name", LOSSES)
def test_defaults_need_no_options_and_a_reference_only_where_the_formula_has_one(name):
    assert LOSSES[name]().needs_reference == (name in ("dpo", "ipo", "kto"))


@every_loss
@settings(deadline=None, max_examples=50)
@given(rewards=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=9))
def test_advantages(loss, rewards):
    if loss.signal is not Advantages:
        return
    values = loss.advantages(rewards)
    assert len(values) == len(rewards)
    assert all(map(math.isfinite, values))
    assert loss.advantages([rewards[0]] * len(rewards)) == [0.0] * len(rewards)


@every_loss
@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**31),
    lengths=st.lists(st.integers(1, 6), min_size=2, max_size=6),
    padding=st.integers(0, 5),
    filler=st.sampled_from([0.0, -50.0, 1e4, -1e4]),
)
def test_padding_does_not_change_the_result(loss, seed, lengths, padding, filler):
    sequences = random_sequences(seed, lengths)
    rows = list(range(len(lengths)))
    assert_close(totals(sequences, loss, [rows]), totals(sequences, loss, [rows], padding=padding, filler=filler))


@every_loss
@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**31),
    units=st.permutations([(0, 1), (2, 3), (4, 5), (6, 7)]),
    cuts=st.sets(st.integers(1, 3)),
)
def test_micro_batches_and_ranks_do_not_change_the_result(loss, seed, units, cuts):
    sequences = random_sequences(seed, [3, 1, 6, 2, 2, 4, 5, 1])
    cut = [units[start:end] for start, end in itertools.pairwise([0, *sorted(cuts), 4])]
    parts = [[i for unit in part for i in unit] for part in cut]
    assert_close(totals(sequences, loss, [list(range(8))]), totals(sequences, loss, parts))


@every_loss
@pytest.mark.parametrize("advantage", [-2.0, 2.0])
def test_the_gradient_has_the_right_sign(loss, advantage):
    """Descending raises what was good (or chosen, or desirable) and lowers what was bad."""
    sequences = random_sequences(0, [4, 2], spread=0.0)
    sequences.advantages = [advantage, advantage]
    gradients = torch.autograd.grad(loss.loss_sum(sequences.micro([0, 1], loss)).loss, sequences.logprobs)
    rises = {
        Advantages: [advantage > 0] * 2,
        Returns: [advantage > 0] * 2,
        Pairs: [True, False],
        Labels: [True, False],
        Demonstrations: [True] * 2,
    }[loss.signal]
    for gradient, up in zip(gradients, rises, strict=True):
        assert bool((gradient < 0 if up else gradient > 0).all())


@pytest.mark.parametrize("loss", [loss for loss in VARIANTS.values() if loss.signal in (Advantages, Returns)])
def test_no_advantage_no_gradient(loss):
    sequences = random_sequences(0, [4], spread=0.0)
    sequences.advantages = [0.0]
    (gradient,) = torch.autograd.grad(loss.loss_sum(sequences.micro([0], loss)).loss, sequences.logprobs)
    assert torch.equal(gradient, torch.zeros(4, dtype=torch.float64))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_ratio", [-1e4, -100.0, -20.0, 20.0, 100.0, 1e4])
@pytest.mark.parametrize("advantage", [-1e3, 1e3])
def test_extreme_ratios_stay_finite(loss, dtype, log_ratio, advantage):
    logprobs = torch.full((2, 3), -1.0, dtype=dtype, requires_grad=True)
    other, full = (logprobs - log_ratio).detach(), torch.full((2, 3), advantage, dtype=dtype)
    tensors = {
        Advantages: SampledTensors(other, full[:, :1]),
        Returns: CriticTensors(other, full, torch.zeros_like(full), full),
        Pairs: PairTensors(torch.tensor([[0, 1]])),
        Labels: LabelTensors(torch.tensor([1.0, 0.0], dtype=dtype), 0.0),
        Demonstrations: SignalTensors(),
    }[loss.signal]
    micro = MicroBatch(logprobs, torch.ones(2, 3, dtype=dtype), other if loss.needs_reference else None, tensors)
    result = loss.loss_sum(micro)
    (gradient,) = torch.autograd.grad(result.loss, logprobs)
    assert bool(torch.isfinite(result.loss))
    assert bool(torch.isfinite(gradient).all())
    assert all(bool(torch.isfinite(value)) for pair in result.metrics.values() for value in pair)


@every_loss
def test_masked_places_have_exactly_no_gradient(loss):
    sequences = random_sequences(3, [4, 2], spread=1e-5)
    micro = sequences.micro([0, 1], loss, padding=3, filler=-7.0)
    logprobs = micro.logprobs_NT.detach().requires_grad_()
    result = loss.loss_sum(dataclasses.replace(micro, logprobs_NT=logprobs))
    (gradient,) = torch.autograd.grad(result.loss, logprobs)
    assert torch.equal(gradient == 0, micro.mask_NT == 0)


@every_loss
def test_metrics_are_detached_scalars_over_the_tokens(loss):
    sequences = random_sequences(4, [4, 2])
    result = loss.loss_sum(sequences.micro([0, 1], loss, padding=1))
    assert result.loss.shape == ()
    assert ("kl" in result.metrics) == loss.needs_reference
    for name, (value, count) in result.metrics.items():
        assert value.shape == count.shape == ()
        assert not value.requires_grad
        assert not count.requires_grad
        assert (
            count.item()
            in {Advantages: (6,), Returns: (6,), Pairs: (1,), Labels: (1, 2), Demonstrations: (6,)}[
                Advantages if name == "kl" else loss.signal
            ]
        )


@pytest.mark.parametrize("loss", [loss for loss in VARIANTS.values() if loss.needs_reference])
def test_the_kl_to_the_reference_is_reported_whatever_the_loss_reads(loss):
    """k3 over all tokens, by hand; 0 where policy and reference are the same."""
    sequences = random_sequences(6, [4, 2, 1, 5])
    value, count = loss.loss_sum(sequences.micro([0, 1, 2, 3], loss, padding=2)).metrics["kl"]
    by_hand = 0.0
    for policy, reference in zip(sequences.logprobs, sequences.reference, strict=True):
        for d in (reference - policy).tolist():
            by_hand += math.exp(d) - d - 1
    assert value.item() == pytest.approx(by_hand, rel=1e-10)
    assert count.item() == 12
    sequences.reference = [part.detach() for part in sequences.logprobs]
    assert loss.loss_sum(sequences.micro([0, 1, 2, 3], loss)).metrics["kl"][0].item() == 0


@pytest.mark.parametrize("loss", [loss for loss in VARIANTS.values() if loss.signal is Advantages])
def test_rows_without_advantage_have_a_gradient_only_with_a_reference(loss: Loss) -> None:
    """What lets the learner skip them (`Batch.without_idle`)."""
    sequences = random_sequences(5, [3, 6, 4], spread=1e-5)
    sequences.advantages = [0.7, 0.0, -0.2]
    gradients = torch.autograd.grad(loss.loss_sum(sequences.micro([0, 1, 2], loss)).loss, sequences.logprobs)
    assert bool(gradients[1].abs().sum() == 0) != loss.needs_reference
    assert all(gradients[i].abs().sum() > 0 for i in (0, 2))
