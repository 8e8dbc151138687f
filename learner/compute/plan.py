"""Which completions are computed together, on which rank, and in which pass. Runs once per step, on the driver.

A unit is what must not be separated: the rows of a completion, or of all completions that pairs connect.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MICRO_BATCH_COST = 128
"""What one more forward and backward pass costs whatever its size, in tokens of padding. About 60 were measured on a
CPU with a tiny model; devices that wait for kernel launches pay more."""

Integers = NDArray[np.int64]


def plan(
    lengths: "Sequence[int] | Integers",
    max_tokens: int,
    num_ranks: int = 1,
    rows: "Sequence[int] | Integers | None" = None,
) -> list[list[list[int]]]:
    """Per rank its micro-batches, and per micro-batch its unit indices. Every unit appears exactly once.

    lengths: tokens of the longest row of each unit. rows: how many rows each unit has; one by default. max_tokens: a
    micro-batch has at most this many tokens, padding included (its rows times its longest row); a unit larger than that
    gets its own micro-batch. Every rank gets the same number of micro-batches, because ZeRO's collectives need
    every rank in every pass; where there are too few units, the last micro-batch of some ranks is empty. Longest rows
    come first, so that a lack of memory shows at once. Deterministic.

    Units are sorted by length, dealt out over the ranks like cards, and cut into passes, so that in each pass all ranks
    have about the same length and, except in one, the same number of units. The cuts minimise exactly what the passes
    take in turn: the padded tokens of the fullest rank plus MICRO_BATCH_COST (dynamic programming, at worst quadratic
    in the units: 20 ms for 4,096). Work is taken to be proportional to tokens; that attention grows with the square of
    the length is left out.
    """
    lengths_U = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-lengths_U, kind="stable")
    rows_U = np.ones(len(lengths_U), dtype=np.int64) if rows is None else np.asarray(rows, dtype=np.int64)
    passes = list(itertools.pairwise(_best_cuts(lengths_U[order], rows_U[order], max_tokens, num_ranks)))
    return [[order[start + rank : end : num_ranks].tolist() for start, end in passes] for rank in range(num_ranks)]


def padding_share(
    ranks: Sequence[Sequence[Sequence[int]]],
    lengths: "Sequence[int] | Integers",
    rows: "Sequence[int] | Integers | None" = None,
    num_tokens: int | None = None,
) -> float:
    """The share of the plan's tokens that are padding, between 0 and 1. lengths, rows: as for `plan`. num_tokens: of
    all units; by default every row is as long as its unit's longest."""
    sizes = rows if rows is not None else [1] * len(lengths)
    batches = [batch for rank in ranks for batch in rank if batch]
    padded = sum(sum(int(sizes[i]) for i in batch) * max(int(lengths[i]) for i in batch) for batch in batches)
    if num_tokens is None:
        num_tokens = sum(int(sizes[i]) * int(lengths[i]) for batch in batches for i in batch)
    return 1.0 - num_tokens / padded if padded else 0.0


def _best_cuts(lengths: Integers, rows: Integers, max_tokens: int, num_ranks: int) -> list[int]:
    """Where to cut units sorted from long to short: [0, ..., number of units]."""
    find_previous = _previous_cuts_of_rows if bool((rows == 1).all()) else _previous_cuts_of_units
    previous = find_previous(np.maximum(lengths, 1), rows, max_tokens, num_ranks)
    cuts = [len(lengths)]
    while cuts[-1] > 0:
        cuts.append(int(previous[cuts[-1]]))
    return cuts[::-1]


def _previous_cuts_of_rows(lengths: Integers, rows: Integers, max_tokens: int, num_ranks: int) -> Integers:
    """[U + 1], for each end of a pass where the pass starts, if every unit is one row.

    The starts that fit before an end are neighbours, because rows and the longest row both grow towards earlier starts.
    """
    num_units = len(lengths)
    limits = np.minimum(np.arange(num_units) + np.maximum(1, max_tokens // lengths) * num_ranks, num_units)
    first_starts = np.searchsorted(limits, np.arange(num_units + 1)).tolist()
    # Read backwards: number of rows on the fullest rank for passes of most_units, ..., 2, 1 units.
    rows_per_rank = np.arange(num_units, 0, -1) + num_ranks - 1
    rows_per_rank //= num_ranks
    cost = np.zeros(num_units + 1, dtype=np.int64)
    previous = np.zeros(num_units + 1, dtype=np.int64)
    for end in range(1, num_units + 1):
        start = first_starts[end]
        candidates = rows_per_rank[num_units - end + start :] * lengths[start:end]
        candidates += cost[start:end]
        # Among equals the last start: earlier passes are full.
        chosen = end - 1 - int(candidates[::-1].argmin())
        cost[end] = candidates[chosen - start] + MICRO_BATCH_COST
        previous[end] = chosen
    return previous


def _previous_cuts_of_units(lengths: Integers, rows: Integers, max_tokens: int, num_ranks: int) -> Integers:
    """As `_previous_cuts_of_rows`, if some unit has several rows."""
    num_units = len(lengths)
    cost = np.full(num_units + 1, np.iinfo(np.int64).max)
    cost[0] = 0
    previous = np.zeros(num_units + 1, dtype=np.int64)
    for start in range(num_units):
        longest = int(lengths[start])
        end = min(start + max(1, max_tokens // longest) * num_ranks, num_units)
        ends = np.arange(start + 1, end + 1)
        rows_per_rank = _rows_of_fullest(rows[start:end], num_ranks)
        fits = (rows_per_rank * longest <= max_tokens) | (ends - start <= num_ranks)
        ends, rows_per_rank = ends[fits], rows_per_rank[fits]
        candidate = cost[start] + rows_per_rank * longest + MICRO_BATCH_COST
        is_better = candidate <= cost[ends]  # Among equals the last: earlier passes are full.
        better = ends[is_better]
        cost[better] = candidate[is_better]
        previous[better] = start
    return previous


def _rows_of_fullest(rows: Integers, num_ranks: int) -> Integers:
    """Rows of the rank that has most of them, after each of these units has been dealt out."""
    padded = np.zeros(-(-len(rows) // num_ranks) * num_ranks, dtype=np.int64)
    padded[: len(rows)] = rows
    per_rank = padded.reshape(-1, num_ranks).cumsum(axis=0)
    fullest: Integers = np.maximum.accumulate(per_rank.ravel())[: len(rows)]
    return fullest
