"""The interfaces of the scoring service."""

from collections.abc import Sequence
from typing import Protocol

from volley.rewards.item import Item
from volley.rollout.types import Completion, Prompt, Score


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


class GroupScorer(Protocol):
    """Scores completions as they end, and then the whole group: what the training loop needs of `Scorer`."""

    @property
    def compares(self) -> bool:
        """Whether rewards are only meaningful among the completions of one group."""
        ...

    async def score(self, prompt: Prompt, completion: Completion) -> Score:
        """Score one completion with the plain terms."""
        ...

    async def score_group(
        self, prompt: Prompt, completions: Sequence[Completion], scores: Sequence[Score]
    ) -> tuple[Score, ...]:
        """Add the group terms to the scores of a whole group. scores: from `score`, one per completion."""
        ...

    def metrics(self) -> dict[str, float]:
        """Metrics of the group terms since the previous call."""
        ...
