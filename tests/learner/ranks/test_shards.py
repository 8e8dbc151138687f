"""Shards contain every completion once, and losses see episodes exactly like a token-by-token derivation."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.learner.rows import group, segment
from volley.learner.config import SignalConfig
from volley.learner.losses import LOSSES
from volley.learner.losses.common import Loss, MicroBatch
from volley.learner.ranks.passes import Passes
from volley.learner.ranks.shards import make_shards
from volley.learner.signals.advantages import Advantages, SampledTensors
from volley.learner.signals.batch import Batch, Shard, SignalTensors, make_batch
from volley.learner.signals.labels import Labels, LabelTensors
from volley.learner.signals.pairs import Pairs, PairTensors
from volley.learner.signals.returns import CriticTensors, Returns
from volley.learner.signals.rows import Rows, starts_of
from volley.rollout.types import Completion, ScoredGroup, Segment

VOCABULARY = 1000
RUNS = st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=3)
EPISODE = st.lists(RUNS, min_size=1, max_size=3)
GROUPS = st.lists(
    st.tuples(
        st.integers(1, 4),
        st.lists(st.tuples(EPISODE, st.sampled_from([0.0, 0.5, 1.0, math.nan])), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=5,
)
ALL_LOSSES: dict[str, Loss] = {
    name: kind(**{"max_tokens": 16} if name == "dr_grpo" else {}) for name, kind in LOSSES.items()
} | {"grpo with reference": LOSSES["grpo"](beta=0.1)}


def make_groups(shapes: Any) -> Iterator[ScoredGroup]:
    """Groups of these shapes. The first token that a completion sampled is its number, and no other token is; a later
    segment begins with a context of one token."""
    number = 100
    for ordinal, (prompt_length, members) in enumerate(shapes):
        completions = []
        for episode, _ in members:
            segments: list[Segment] = []
            tokens = iter([number])
            for k, runs in enumerate(episode):
                # Something was sampled in every segment, and something precedes it.
                shown = [((7, 8), False)] * (k > 0) + [((3,) * length, sampled) for length, sampled in runs]
                shown.append(((4, 5), True))
                parts = []
                for ids, sampled in shown:
                    parts.append(((next(tokens, ids[0]), *ids[1:]) if sampled else ids, sampled))
                segments.append(segment(parts, -0.2 - 0.05 * (number % 7)))
            completions.append(Completion(tuple(segments), str(number), "stop"))
            number += 1
        yield group(ordinal, [10 + ordinal] * prompt_length, completions, [reward for _, reward in members])


def numbers(rows: Rows) -> list[int]:
    """The number of each completion."""
    found = []
    for n in range(rows.num_completions):
        each = rows.part(n, n + 1)
        found.append(int(each.token_ids[each.trained][0]))
    return found


def pairs_of(signal: Pairs, rows: Rows) -> list[tuple[int, int]]:
    names = numbers(rows)
    return sorted((names[w], names[loser]) for w, loser in signal.pairs.tolist())


@settings(deadline=None, max_examples=150)
@given(
    shapes=GROUPS,
    name=st.sampled_from(sorted(ALL_LOSSES)),
    max_tokens=st.integers(5, 120),
    num_ranks=st.integers(1, 4),
    all_pairs=st.booleans(),
)
def test_every_completion_is_in_one_micro_batch_of_one_rank(
    shapes: Any, name: str, max_tokens: int, num_ranks: int, all_pairs: bool
) -> None:
    loss = ALL_LOSSES[name]
    groups = list(make_groups(shapes))
    batch = make_batch(groups, loss, 0, SignalConfig(pairs="all" if all_pairs else "best_worst"))
    shards = make_shards(batch, max_tokens, num_ranks)
    assert len(shards) == num_ranks
    assert len({len(shard.work.sizes) for shard in shards}) == 1, "every rank must make the same number of passes"
    assert all(shard.counts == batch.counts for shard in shards)
    rows = [shard.work.rows for shard in shards]
    assert sum(each.num_trained for each in rows) == batch.rows.num_trained
    assert sum(len(each.token_ids) for each in rows) == len(batch.rows.token_ids)
    assert sorted(n for each in rows for n in numbers(each)) == sorted(numbers(batch.rows))
    assert all(sum(shard.work.sizes) == shard.work.rows.num_completions for shard in shards)
    joined = Rows.joined(rows)
    order = [numbers(joined).index(n) for n in numbers(batch.rows)]
    assert joined.take(np.array(order, dtype=np.int64)) == batch.rows, "no token of any completion has changed"
    check_signal(batch, shards)
    check_budget(batch, shards, max_tokens)
    if isinstance(batch.signal, Labels):
        extra = Rows.joined([shard.auxiliary.rows for shard in shards if shard.auxiliary is not None])
        assert batch.signal.mismatched is not None
        assert sorted(numbers(extra)) == sorted(numbers(batch.signal.mismatched))


def check_signal(batch: Batch, shards: list[Shard]) -> None:
    """Each completion has kept its value, and each pair is within one micro-batch."""
    signal = batch.signal
    if isinstance(signal, Advantages | Labels | Returns):
        field = "rewards" if isinstance(signal, Returns) else "values"
        expected = dict(zip(numbers(batch.rows), getattr(signal, field).tolist(), strict=True))
        for shard in shards:
            values = getattr(shard.signal, field).tolist()
            assert dict(zip(numbers(shard.work.rows), values, strict=True)).items() <= expected.items()
    if isinstance(signal, Pairs):
        found = []
        for shard in shards:
            assert isinstance(shard.signal, Pairs)
            starts = starts_of(shard.work.sizes)
            batch_of = np.repeat(np.arange(len(shard.work.sizes)), np.diff(starts))
            assert all(batch_of[w] == batch_of[loser] for w, loser in shard.signal.pairs)
            found += pairs_of(shard.signal, shard.work.rows)
        assert sorted(found) == pairs_of(signal, batch.rows)


def check_budget(batch: Batch, shards: list[Shard], max_tokens: int) -> None:
    """Only a unit that is too large by itself exceeds the budget."""
    units = dict(zip(numbers(batch.rows), batch.signal.unit_of(batch.rows.num_completions).tolist(), strict=True))
    for shard in shards:
        start = 0
        for size in shard.work.sizes:
            rows = shard.work.rows.part(start, start + size)
            if len({units[n] for n in numbers(rows)}) > 1:
                assert rows.num_rows * rows.lengths.max() <= max_tokens
            start += size


class Network(nn.Module):
    """A causal model: the state at a place is the sum of the embeddings up to it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(VOCABULARY, 6, dtype=torch.float64)
        self.head = nn.Linear(6, VOCABULARY, dtype=torch.float64)
        self.value = nn.Linear(6, 1, dtype=torch.float64)
        self.device = torch.device("cpu")

    def forward(
        self, ids_RL: Tensor, mask: Any, positions_M: Tensor, targets_M: Tensor, temperature: float, *_: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        hidden_MD = self.embedding(ids_RL).cumsum(1).flatten(0, 1)[positions_M]
        logprobs_M = self.head(hidden_MD).log_softmax(-1).gather(1, targets_M[:, None]).squeeze(1)
        return logprobs_M, torch.zeros_like(logprobs_M), self.value(hidden_MD).squeeze(1)

    def logprobs_M(self, data: Any) -> Tensor:
        return self(*data.model_inputs, 1.0)[0].detach()

    def one(self, context: list[int], token: int) -> tuple[Tensor, Tensor]:
        """Log-prob of a token after a context, and the value of that context."""
        state = self.embedding(torch.tensor(context)).sum(0)
        return self.head(state).log_softmax(-1)[token], self.value(state)[0]


POLICY, REFERENCE = Network(2), Network(1)


@dataclasses.dataclass
class PerToken:
    """One completion, token by token: what was sampled, under each model."""

    logprobs: list[Tensor]
    reference: list[float]
    behaviour: list[float]
    values: list[Tensor]

    @classmethod
    def of(cls, prompt: list[int], completion: Completion) -> "PerToken":
        found = cls([], [], [], [])
        for k, each in enumerate(completion.segments):
            context = list(prompt) if k == 0 else []
            for token, logprob, sampled in zip(
                each.token_ids.tolist(), each.logprobs.tolist(), each.sampled, strict=True
            ):
                if sampled:
                    policy, value = POLICY.one(context, token)
                    found.logprobs.append(policy)
                    found.values.append(value)
                    found.reference.append(REFERENCE.one(context, token)[0].item())
                    found.behaviour.append(logprob)
                context.append(token)
        return found


def padded(rows: list[list[Any]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.stack(
        [
            torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in row + [0.0] * (longest - len(row))])
            for row in rows
        ]
    )


def slow_signal(loss: Loss, groups: list[ScoredGroup], per_token: list[PerToken]) -> SignalTensors:
    """What the family reads, from loops over the groups. All rewards are numbers."""
    behaviour_NT = padded([each.behaviour for each in per_token])
    rewards = [reward for each in groups for reward in each.rewards]
    if loss.signal is Advantages:
        values = [value for each in groups for value in loss.advantages(each.rewards)]  # type: ignore[attr-defined]
        if loss.whitens:  # type: ignore[attr-defined]
            spread = math.sqrt(sum(value**2 for value in values) / (len(values) - 1))
            values = [value / (spread + 1e-8) for value in values]
        return SampledTensors(behaviour_NT, torch.tensor(values, dtype=torch.float64)[:, None])
    if loss.signal is Returns:
        advantages: list[list[float]] = []
        for each, reward in zip(per_token, rewards, strict=True):
            values, row, after, following = [float(v) for v in each.values], [], 0.0, 0.0
            for t in reversed(range(len(values))):
                delta = (reward if t == len(values) - 1 else 0.0) + after - values[t]
                following = delta + 0.95 * following
                row.insert(0, following)
                after = values[t]
            advantages.append(row)
        flat = [a for row in advantages for a in row]
        mean = sum(flat) / len(flat)
        std = math.sqrt(sum((a - mean) ** 2 for a in flat) / (len(flat) - 1))
        white = [[(a - mean) / (std + 1e-8) for a in row] for row in advantages]
        returns = [
            [a + float(v) for a, v in zip(*pair, strict=True)]
            for pair in zip(advantages, [each.values for each in per_token], strict=True)
        ]
        values_NT = padded([each.values for each in per_token])
        return CriticTensors(behaviour_NT, padded(white), values_NT, padded(returns))
    if loss.signal is Pairs:
        pairs, start = [], 0
        for each in groups:
            best, worst = max(each.rewards), min(each.rewards)
            if best > worst:
                pairs.append((start + each.rewards.index(best), start + each.rewards.index(worst)))
            start += len(each.rewards)
        return PairTensors(torch.tensor(pairs).view(-1, 2))
    if loss.signal is Labels:
        return LabelTensors(
            torch.tensor([float(reward >= 0.5) for reward in rewards], dtype=torch.float64), slow_baseline(groups)
        )
    return SignalTensors()


def slow_baseline(groups: list[ScoredGroup]) -> float:
    """Groups of two, all with prompts of their own: completions move on by one group; first segments only."""
    moved = groups[1:] + groups[:1]
    ratios = []
    for one, other in zip(groups, moved, strict=True):
        for completion in other.completions:
            first = Completion(completion.segments[:1], "", "stop")
            per_token = PerToken.of(one.prompt.token_ids.tolist(), first)
            ratios.append(float(sum(per_token.logprobs)) - sum(per_token.reference))
    assert sum(ratios) > 0, "choose other networks: z is clamped"
    return sum(ratios) / len(ratios)


GROUPS_OF_EPISODES = [
    # A tool's answer between two turns; a rewritten history; an observation before the first sampled token.
    (2, [([[(2, True), (3, False), (1, True)]], 1.0), ([[(1, True)], [(2, False), (4, True)]], 0.0)]),
    (1, [([[(3, False), (2, True)]], 0.5), ([[(5, True)], [(1, True)], [(2, False)]], 1.0)]),
    (3, [([[(4, True)]], 0.0), ([[(1, False)], [(1, True), (2, False)]], 0.5)]),
]


@pytest.mark.parametrize("max_tokens", [20, 60, 1000])
@pytest.mark.parametrize("name", ALL_LOSSES)
def test_episodes_equal_a_derivation_token_by_token(name: str, max_tokens: int) -> None:
    loss, groups = ALL_LOSSES[name], list(make_groups(GROUPS_OF_EPISODES))
    episodes = [(each.prompt.token_ids.tolist(), completion) for each in groups for completion in each.completions]
    per_token = [PerToken.of(prompt, completion) for prompt, completion in episodes]
    num_tokens = sum(len(each.logprobs) for each in per_token)
    slow = loss.loss_sum(
        MicroBatch(
            padded([each.logprobs for each in per_token]),
            padded([[1.0] * len(each.logprobs) for each in per_token]),
            padded([each.reference for each in per_token]) if loss.needs_reference else None,
            slow_signal(loss, groups, per_token),
        )
    )
    expected = slow.loss / loss.normalizer(num_tokens, len(per_token), len(groups))

    batch = make_batch(groups, loss, 0)
    assert (batch.counts.tokens, batch.counts.completions) == (num_tokens, len(per_token))
    (shard,) = make_shards(batch, max_tokens, 1)
    passes = Passes(POLICY, REFERENCE if loss.needs_reference else None, 1.0, 0)  # type: ignore[arg-type]
    prepared, _ = shard.signal.prepare(passes, shard.work, shard.auxiliary)
    total, sums = torch.zeros((), dtype=torch.float64), Counter[str]()
    for each in passes.over(shard.work):
        logprobs_M, _, values_M = passes.forward(each.data)
        result = loss.loss_sum(passes.micro_batch(shard.work, each, prepared, logprobs_M, values_M))
        total = total + result.loss / loss.normalizer(*dataclasses.astuple(shard.counts))
        for key, (value, _) in result.metrics.items():
            sums[key] += float(value)
    assert len(shard.work.sizes) > 1 or max_tokens == 1000
    assert float(total) == pytest.approx(float(expected), rel=1e-5, abs=1e-6)
    for key, (value, _) in slow.metrics.items():
        assert sums[key] == pytest.approx(float(value), rel=1e-4, abs=1e-5), key
    parameters = [POLICY.embedding.weight, POLICY.head.weight]
    for ours, theirs in zip(
        torch.autograd.grad(total, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
