"""A batch becomes shards: one per rank, planned once on the driver."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from volley.learner.compute.plan import padding_share, plan
from volley.learner.compute.recorded import Recorded
from volley.learner.signals.batch import Batch, Shard
from volley.learner.signals.rows import Floats, Indices, PlannedRows, Rows, pairwise_slices, ranges, starts_of


def make_shards(
    batch: Batch, max_tokens: int, num_ranks: int, *, skips_idle: bool = False, recorded: Recorded | None = None
) -> list[Shard]:
    """The shard of each rank. max_tokens: of a micro-batch. skips_idle: leave out completions without gradient, which
    only an update without a reference may do. recorded: the reference's log-probs, where they are recorded."""
    counts = batch.counts
    if skips_idle:
        batch = batch.without_idle()
    rows, signal = batch.rows, batch.signal
    planned = plan_completions(rows, max_tokens, num_ranks, signal.unit_of(rows.num_completions))
    auxiliary: Sequence[PlannedRows | None] = [None] * num_ranks
    if signal.auxiliary is not None:
        auxiliary = shard_rows(signal.auxiliary, max_tokens, num_ranks, recorded)
    return [
        Shard(
            planned_rows(rows, own, recorded),
            signal.take(own.order),
            extra,
            counts,
            batch.metrics,
            planned.padding_share,
        )
        for own, extra in zip(planned.ranks, auxiliary, strict=True)
    ]


def shard_rows(rows: Rows, max_tokens: int, num_ranks: int, recorded: Recorded | None = None) -> list[PlannedRows]:
    """Each rank's part of rows that are evaluated, but not learned from."""
    planned = plan_completions(rows, max_tokens, num_ranks)
    return [planned_rows(rows, own, recorded) for own in planned.ranks]


@dataclass(frozen=True, slots=True)
class RankPlan:
    """Which completions one rank computes."""

    order: Indices
    """Micro-batch after micro-batch."""
    sizes: tuple[int, ...]
    """Completions of each micro-batch."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Which completions each rank computes."""

    ranks: list[RankPlan]
    padding_share: float
    """The share of all computed tokens that are padding."""


def plan_completions(rows: Rows, max_tokens: int, num_ranks: int, unit_of: Indices | None = None) -> Plan:
    """unit_of: [N], equal numbers for neighbours that must stay together; by default each completion is alone."""
    num = rows.num_completions
    units = np.arange(num) if unit_of is None else unit_of
    is_first = np.ones(num, dtype=np.bool_)
    is_first[1:] = units[1:] != units[:-1]
    unit_starts = np.append(np.flatnonzero(is_first), num)
    row_starts = rows.completion_starts[unit_starts]
    num_rows = np.diff(row_starts)
    longest = np.maximum.reduceat(rows.lengths, row_starts[:-1]) if num else np.zeros(0, dtype=np.int64)
    planned = plan(longest, max_tokens, num_ranks, num_rows)
    sizes_U = np.diff(unit_starts)
    ranks = []
    for batches in planned:
        picked = np.array([unit for batch in batches for unit in batch], dtype=np.int64)
        sizes = tuple(int(sizes_U[batch].sum()) for batch in batches)
        ranks.append(RankPlan(ranges(unit_starts, picked), sizes))
    return Plan(ranks, padding_share(planned, longest, num_rows, len(rows.token_ids)))


def in_original_order(ranks: Sequence[RankPlan], lengths: Indices, parts: Sequence[Floats]) -> list[Floats]:
    """What the ranks computed for each completion, in the order of the rows. lengths: [N], values of each completion.
    parts: per rank, the values of its completions, one after the other."""
    order, values = np.concatenate([own.order for own in ranks]), np.concatenate(parts)
    slices = pairwise_slices(starts_of(lengths[order]))
    return [values[slices[place]] for place in np.argsort(order)]


def planned_rows(rows: Rows, own: RankPlan, recorded: Recorded | None = None) -> PlannedRows:
    """The rows of one rank."""
    mine = rows.take(own.order)
    return PlannedRows(mine, own.sizes, None if recorded is None else recorded.logprobs_M(mine))
