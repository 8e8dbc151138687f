"""Rewards of a group become pairs (chosen, rejected): which completion is preferred to which.

Ties are dropped, never trained on. So are pairs of completions with the same tokens, which cannot differ in log-prob.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from volley.learner.config import SignalConfig
from volley.learner.signals.batch import Batch, Drawn, MicroBatchPart, ReadySignal, SignalTensors
from volley.learner.signals.rows import ArrayFields, Indices, Rows
from volley.rollout.errors import DataError
from volley.rollout.types import Completion, ScoredGroup, TokenIds

SMALLEST_GAP = 1e-9
"""Rewards closer than this are tied: weighted sums of the same terms may differ in their last bits."""


@dataclass(frozen=True, slots=True)
class PairTensors(SignalTensors):
    """What pair losses read."""

    pairs_P2: Tensor
    """int64, places in N of the chosen and the rejected completion of each of P pairs."""


@dataclass(frozen=True, slots=True, eq=False)
class Pairs(ArrayFields, ReadySignal):
    """Which completion is preferred to which. Only completions that are in a pair become rows."""

    label: ClassVar[str] = "pairs"
    from_policy: ClassVar[bool] = True
    how: ClassVar[str] = "pairing the best with the worst"
    columns: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    compares: ClassVar[bool] = True

    pairs: NDArray[np.int64]
    """[P, 2], (place of the chosen, place of the rejected) in N."""
    units: Indices
    """[N], a number per group. The completions of a group are neighbours, and are computed together, because the loss
    needs both sides of a pair at once."""

    @classmethod
    def make_batch(cls, drawn: Drawn, loss: Any) -> Batch:
        """Metrics: pairs; pairs_same; pair_yield, the share of drawn groups that gave a pair; pairs_dropped/REASON; the
        mean lengths of both sides, in tokens."""
        kept: list[tuple[TokenIds, Completion]] = []
        pairs: list[tuple[int, int]] = []
        units: list[int] = []
        dropped: Counter[str] = Counter(tied=0, unscorable=0, same=0)
        num_same = num_units = 0
        for group in drawn.groups:
            found = group_pairs(group.rewards, [c.token_ids for c in group.completions], drawn.config)
            num_same += found.num_same
            if found.dropped:
                dropped[found.dropped] += 1
                continue
            places = {i: len(kept) + k for k, i in enumerate(sorted({i for pair in found.pairs for i in pair}))}
            kept += [(group.prompt.token_ids, group.completions[i]) for i in places]
            pairs += [(places[chosen], places[rejected]) for chosen, rejected in found.pairs]
            units += [num_units] * len(places)
            num_units += 1
        num_drawn = len(drawn.groups) + sum(drawn.replaced.values())
        metrics: dict[str, float] = {
            "pairs": len(pairs),
            "pairs_same": num_same,
            "pair_yield": num_units / max(1, num_drawn),
            **{f"pairs_dropped/{name}": float(count + drawn.replaced.get(name, 0)) for name, count in dropped.items()},
        }
        rows = Rows.from_completions(kept, drawn.version)
        signal = cls(np.array(pairs, dtype=np.int64).reshape(-1, 2), np.array(units, dtype=np.int64))
        if pairs:
            chosen_length, rejected_length = rows.trained_per_completion[signal.pairs].mean(axis=0).tolist()
            metrics |= {"chosen_length_mean": chosen_length, "rejected_length_mean": rejected_length}
        return Batch(rows, signal, metrics)

    @classmethod
    def reason_against(cls, group: ScoredGroup, config: SignalConfig) -> str:
        return group_pairs(group.rewards, [c.token_ids for c in group.completions], config).dropped

    @classmethod
    def read(cls, row: Mapping[str, Any], text: Callable[[str], str], where: str) -> list[tuple[str, float]]:
        chosen, rejected = text("chosen"), text("rejected")
        if chosen == rejected:
            raise DataError(
                f"{where}: chosen and rejected are the same text, so neither is to be preferred; remove the row "
                "(volley audit counts them)."
            )
        return [(chosen, 1.0), (rejected, 0.0)]

    @property
    def num_pairs(self) -> int:
        return len(self.pairs)

    def unit_of(self, num_completions: int) -> Indices:
        return self.units

    def take(self, completions: Indices) -> "Pairs":
        """Pairs with both sides among them."""
        places = np.full(len(self.units), -1)
        places[completions] = np.arange(len(completions))
        pairs = places[self.pairs]
        return Pairs(pairs[(pairs >= 0).all(axis=1)], self.units[completions])

    def tensors(self, part: MicroBatchPart) -> PairTensors:
        inside = (self.pairs[:, 0] >= part.completions.start) & (self.pairs[:, 0] < part.completions.stop)
        pairs = self.pairs[inside] - part.completions.start
        return PairTensors(torch.tensor(pairs, device=part.behaviour_NT.device))


@dataclass(frozen=True, slots=True)
class GroupPairs:
    """The pairs of one group."""

    pairs: tuple[tuple[int, int], ...]
    """(index of the chosen, index of the rejected)."""
    dropped: str
    """"" or why there is no pair: "unscorable" (fewer than two rewards), "tied" (no gap of at least the margin) or
    "same" (the same tokens)."""
    num_same: int = 0
    """Pairs left out because both sides have the same tokens."""


def group_pairs(rewards_G: Sequence[float], completions_G: Sequence[TokenIds], config: SignalConfig) -> GroupPairs:
    """The pairs of a group by its rewards (NaN: unscorable). completions_G: their token ids.

    best_worst: among several best or worst completions the first one counts. all: every ordered pair whose gap is large
    enough.
    """
    scorable = [i for i, reward in enumerate(rewards_G) if not math.isnan(reward)]
    if len(scorable) < 2:
        return GroupPairs((), "unscorable")
    if config.pairs == "best_worst":
        best = max(scorable, key=lambda i: (rewards_G[i], -i))
        worst = min(scorable, key=lambda i: (rewards_G[i], i))
        candidates = [(best, worst)]
    else:
        candidates = [(i, j) for i in scorable for j in scorable]
    gapped = [(i, j) for i, j in candidates if rewards_G[i] - rewards_G[j] >= max(config.margin, SMALLEST_GAP)]
    if not gapped:
        return GroupPairs((), "tied")
    pairs = tuple((i, j) for i, j in gapped if not np.array_equal(completions_G[i], completions_G[j]))
    return GroupPairs(pairs, "" if pairs else "same", len(gapped) - len(pairs))
