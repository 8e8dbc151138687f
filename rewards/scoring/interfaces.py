"""The interface between the reward service and the machines that run its processes."""

from typing import Protocol

from volley.rewards.item import Item
from volley.rollout.types import Score


class ItemScorer(Protocol):
    """Scores single items with the plain terms of a run. Items and scores are picklable, so it may be remote."""

    async def start(self) -> None:
        """Start the scoring processes. Raises RewardError if a reward cannot be loaded."""
        ...

    async def close(self) -> None:
        """Stop the scoring processes and cancel waiting items. May be called twice."""
        ...

    async def score(self, item: Item) -> Score:
        """Score one item. A failing reward is reported in `Score.unscorable`, not raised.

        Raises RewardError only if scoring processes cannot be started any more.
        """
        ...
