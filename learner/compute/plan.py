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
    gets a micro-batch of its own. Every rank gets the same number of micro-batches, because ZeRO's collectives need
    every rank in every pass; where there are too few units, the last micro-batch of some ranks is empty. Longest rows
    come first, so that a lack of memory shows at once. Deterministic.

    Units are sorted by length, dealt out over the ranks like cards, and cut into passes, so that in each pass all ranks
    have about the same length and, except in one, the same number of units. The cuts minimise exactly what the passes
    take in turn: the padded tokens of the fullest rank plus MICRO_BATCH_COST (dynamic programming, quadratic in the
    units: 40 ms for 4,096). Work is taken to be proportional to tokens; that attention grows with the square of the
    length is left out.
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
    num_units = len(lengths)
    cost = np.full(num_units + 1, np.iinfo(np.int64).max)
    cost[0] = 0
    previous = np.zeros(num_units + 1, dtype=np.int64)
    all_single = bool((rows == 1).all())
    for start in range(num_units):
        longest = max(1, int(lengths[start]))
        most_units = max(1, max_tokens // longest) * num_ranks
        end = min(start + most_units, num_units)
        ends = np.arange(start + 1, end + 1)
        if all_single:
            rows_per_rank = (ends - start + num_ranks - 1) // num_ranks
        else:
            rows_per_rank = _rows_of_fullest(rows[start:end], num_ranks)
            fits = (rows_per_rank * longest <= max_tokens) | (ends - start <= num_ranks)
            ends, rows_per_rank = ends[fits], rows_per_rank[fits]
        candidate = cost[start] + rows_per_rank * longest + MICRO_BATCH_COST
        is_better = candidate <= cost[ends]  # Among equals the last: earlier passes are full.
        better = ends[is_better]
        cost[better] = candidate[is_better]
        previous[better] = start
    cuts = [num_units]
    while cuts[-1] > 0:
        cuts.append(int(previous[cuts[-1]]))
    return cuts[::-1]


def _rows_of_fullest(rows: Integers, num_ranks: int) -> Integers:
    """Rows of the rank that has most of them, after each of these units has been dealt out."""
    padded = np.zeros(-(-len(rows) // num_ranks) * num_ranks, dtype=np.int64)
    padded[: len(rows)] = rows
    per_rank = padded.reshape(-1, num_ranks).cumsum(axis=0)
    fullest: Integers = np.maximum.accumulate(per_rank.ravel())[: len(rows)]
    return fullest
