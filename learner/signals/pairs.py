"""Rewards of a group to pairs (chosen, rejected): which completion is to be preferred to which.

Ties are dropped, never trained on; so are pairs of completions with the same tokens, which cannot differ in log-prob.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from volley.learner.config import SignalConfig

SMALLEST_GAP = 1e-9
"""Rewards closer than this are tied: weighted sums of the same terms may differ in their last bits."""


@dataclass(frozen=True, slots=True)
class GroupPairs:
    """Of one group. pairs: (index of the chosen, index of the rejected). dropped: "" or why there is no pair:
    "unscorable" (fewer than two rewards), "tied" (no gap of at least the margin) or "same" (the same tokens). num_same:
    how many pairs were left out because both sides are the same tokens."""

    pairs: tuple[tuple[int, int], ...]
    dropped: str
    num_same: int = 0


def group_pairs(
    rewards_G: Sequence[float], completions_G: Sequence[tuple[int, ...]], config: SignalConfig
) -> GroupPairs:
    """The pairs of a group by its rewards (NaN: unscorable); completions_G: their token ids.

    best_worst: of several best or worst the first one. all: every ordered pair whose gap is large enough.
    """
    scored = [i for i, reward in enumerate(rewards_G) if not math.isnan(reward)]
    if len(scored) < 2:
        return GroupPairs((), "unscorable")
    if config.pairs == "best_worst":
        best = max(scored, key=lambda i: (rewards_G[i], -i))
        worst = min(scored, key=lambda i: (rewards_G[i], i))
        candidates = [(best, worst)]
    else:
        candidates = [(i, j) for i in scored for j in scored]
    gapped = [(i, j) for i, j in candidates if rewards_G[i] - rewards_G[j] >= max(config.margin, SMALLEST_GAP)]
    if not gapped:
        return GroupPairs((), "tied")
    pairs = tuple((i, j) for i, j in gapped if completions_G[i] != completions_G[j])
    return GroupPairs(pairs, "" if pairs else "same", len(gapped) - len(pairs))
