"""Scored groups become a batch: rows (what was said) and a signal (what the loss reads).

Unscorable completions carry no signal and are left out; the caller has counted them.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from volley.learner.config import SignalConfig
from volley.learner.losses.common import Loss
from volley.learner.signals.advantages import scaled_by_spread
from volley.learner.signals.pairs import group_pairs
from volley.rollout.types import ScoredGroup


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence to learn from.

    prompt_ids: [P]. completion_ids: [T]. behaviour_logprobs: [T] of the distribution that sampled them (zeros for
    what stands in a data set). staleness: weight versions between sampling its first token and this batch.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    behaviour_logprobs: tuple[float, ...]
    staleness: int

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True, slots=True)
class Advantages:
    """The signal of policy losses: one advantage per row, [N]."""

    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Rewards:
    """The signal of losses with a critic, as it comes from the rewards: one number per row, [N]."""

    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Targets:
    """The same when the critic has seen the rows (`critic`): for each token of each completion its advantage
    and the return that its value should have been, [N][T]."""

    advantages: tuple[tuple[float, ...], ...]
    returns: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Pairs:
    """The signal of pair losses. pairs: (row of the chosen, row of the rejected). units: rows that some pair joins, so
    that they must be computed together; every row is in one."""

    pairs: tuple[tuple[int, int], ...]
    units: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Labels:
    """The signal of label losses: whether each row is desirable, [N]. mismatched: prompts with the completions of other
    prompts, from which KTO estimates how far the policy is from its reference."""

    values: tuple[bool, ...]
    mismatched: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Demonstrations:
    """The signal of supervised losses: every row is to be imitated."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one optimizer step learns from, over all ranks and micro-batches. facts: what is worth knowing of how it was
    made (`pair_yield`, `desirable_share`, ...)."""

    rows: tuple[Row, ...]
    signal: Advantages | Rewards | Targets | Pairs | Labels | Demonstrations
    facts: Mapping[str, float] = field(default_factory=dict)

    @property
    def num_completion_tokens(self) -> int:
        return sum(len(row.completion_ids) for row in self.rows)

    @property
    def num_pairs(self) -> int:
        return len(self.signal.pairs) if isinstance(self.signal, Pairs) else 0

    @property
    def units(self) -> Sequence[Sequence[int]]:
        """Rows that must be in one micro-batch."""
        return self.signal.units if isinstance(self.signal, Pairs) else [(i,) for i in range(len(self.rows))]

    def with_gradient(self, loss: Loss) -> "Batch":
        """Without the rows that cannot move the weights, at least one row: a policy loss without a reference (so
        without a KL term) is proportional to the advantage, and groups whose rewards are all equal have advantages of
        exactly 0. They count in the loss's normalizer, but need neither forward nor backward pass."""
        if not isinstance(self.signal, Advantages) or loss.needs_reference or not self.rows:
            return self
        kept = [i for i, value in enumerate(self.signal.values) if value != 0.0] or [0]
        signal = Advantages(tuple(self.signal.values[i] for i in kept))
        return Batch(tuple(self.rows[i] for i in kept), signal, self.facts)


@dataclass(frozen=True, slots=True)
class Update:
    """What one optimizer step reports. metrics: name -> value over the rows of the global batch that have a gradient
    (`loss`, `grad_norm`, `lr`, `entropy`, `logprob_mismatch_mean`, ... and the loss's own)."""

    metrics: Mapping[str, float]


def make_batch(
    groups: Sequence[ScoredGroup],
    loss: Loss,
    version: int,
    config: SignalConfig | None = None,
    replaced: Mapping[str, int] | None = None,
) -> Batch:
    """The batch of `groups` for `loss`; `version` is the weight version that is about to be updated. replaced: how many
    groups were drawn for it and replaced, by `reason_against`, so that yields are those of all groups drawn."""
    config = config or SignalConfig()
    if loss.signal == "pairs":
        return _pair_batch(groups, version, config, replaced or {})
    rows: list[Row] = []
    rewards: list[float] = []
    advantages: list[float] = []
    for group in groups:
        kept = [i for i, reward in enumerate(group.rewards) if not math.isnan(reward)]
        rows += [_row(group, i, version) for i in kept]
        rewards += [group.rewards[i] for i in kept]
        if loss.signal == "advantages":
            advantages += loss.advantages([group.rewards[i] for i in kept])
    if loss.signal == "advantages":
        return Batch(tuple(rows), Advantages(tuple(scaled_by_spread(advantages) if loss.whitens else advantages)))
    if loss.signal == "rewards":
        return Batch(tuple(rows), Rewards(tuple(rewards)))
    if loss.signal == "labels":
        values = tuple(reward >= config.threshold for reward in rewards)
        facts = {"desirable_share": sum(values) / len(values)} if values else {}
        return Batch(tuple(rows), Labels(values, _mismatched(rows)), facts)
    return Batch(tuple(rows), Demonstrations())


def reason_against(group: ScoredGroup, loss: Loss, config: SignalConfig) -> str:
    """Why nothing that `make_batch` would make of this group moves the weights: "tied", "unscorable" or "same" as in
    `volley.learner.signals.pairs.GroupPairs`; "" where something does."""
    if loss.signal == "pairs":
        return group_pairs(group.rewards, [tuple(c.token_ids.tolist()) for c in group.completions], config).dropped
    num_scored = sum(not math.isnan(reward) for reward in group.rewards)
    if loss.signal == "advantages":
        return "" if group.has_signal else "tied" if num_scored > 1 else "unscorable"
    return "" if num_scored else "unscorable"


def _pair_batch(
    groups: Sequence[ScoredGroup], version: int, config: SignalConfig, replaced: Mapping[str, int]
) -> Batch:
    """Only the completions that are in a pair become rows."""
    rows: list[Row] = []
    pairs: list[tuple[int, int]] = []
    units: list[tuple[int, ...]] = []
    dropped: Counter[str] = Counter(tied=0, unscorable=0, same=0)
    num_same = 0
    for group in groups:
        found = group_pairs(group.rewards, [tuple(c.token_ids.tolist()) for c in group.completions], config)
        num_same += found.num_same
        if found.dropped:
            dropped[found.dropped] += 1
            continue
        place = {i: len(rows) + k for k, i in enumerate(sorted({i for pair in found.pairs for i in pair}))}
        rows += [_row(group, i, version) for i in place]
        pairs += [(place[chosen], place[rejected]) for chosen, rejected in found.pairs]
        units.append(tuple(place.values()))
    num_drawn = len(groups) + sum(replaced.values())
    facts: dict[str, float] = {
        "pairs": len(pairs),
        "pairs_same": num_same,
        "pair_yield": len(units) / max(1, num_drawn),
        **{f"pairs_dropped/{reason}": float(count + replaced.get(reason, 0)) for reason, count in dropped.items()},
    }
    if pairs:
        facts["chosen_length_mean"] = sum(len(rows[i].completion_ids) for i, _ in pairs) / len(pairs)
        facts["rejected_length_mean"] = sum(len(rows[i].completion_ids) for _, i in pairs) / len(pairs)
    return Batch(tuple(rows), Pairs(tuple(pairs), tuple(units)), facts)


def _row(group: ScoredGroup, index: int, version: int) -> Row:
    completion = group.completions[index]
    arrays = (group.prompt.token_ids, completion.token_ids, completion.logprobs)
    prompt_ids, completion_ids, logprobs = (tuple(values.tolist()) for values in arrays)
    return Row(prompt_ids, completion_ids, logprobs, version - completion.first_version)


def _mismatched(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Prompts with the completions of other prompts, every row and every completion once.

    With the rows of each prompt side by side, completions move on by as many rows as the largest prompt has: by one
    where every prompt has one row, and the i-th of each prompt meets the i-th of the next where all have equally many.
    A prompt with more than half of all rows then meets some of its own; those are left out.
    """
    places: dict[tuple[int, ...], list[Row]] = {}
    for row in rows:
        places.setdefault(row.prompt_ids, []).append(row)
    sorted_rows = [row for same in places.values() for row in same]
    shift = max(map(len, places.values()), default=0)
    moved = sorted_rows[shift:] + sorted_rows[:shift]
    return tuple(
        Row(row.prompt_ids, other.completion_ids, other.behaviour_logprobs, other.staleness)
        for row, other in zip(sorted_rows, moved, strict=True)
        if row.prompt_ids != other.prompt_ids
    )
