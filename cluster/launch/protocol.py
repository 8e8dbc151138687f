"""The interface of a launcher: it starts learner and engines, watches them, and moves weights between them."""

from typing import Protocol

from volley.learner.ranks.group import LearnerGroup
from volley.rewards.scoring.interfaces import ItemScorer
from volley.rollout.engines.pool import RolloutPool


class Launcher(Protocol):
    """Starts learner and engines, keeps them alive, and sends the learner's weights to the engines."""

    learner: LearnerGroup
    """Available after `start`."""
    pool: RolloutPool
    """The engines; empty if the recipe needs none. Available after `start`."""

    async def prepare(self) -> None:
        """Refuse what cannot work, before anything is written."""

    def item_scorer(self) -> ItemScorer | None:
        """Scores the plain reward terms elsewhere; None for processes on this machine. Available after `prepare`."""
        ...

    async def start(self) -> None:
        """Load the model into the learner and the engines."""

    async def push(self, version: int) -> None:
        """Make all engines serve the learner's current weights as `version`."""

    async def watch(self) -> None:
        """Never returns. Raises if something is lost that the run cannot continue without."""

    def metrics(self) -> dict[str, float]:
        """Launcher metrics to add to the step's row."""
        ...

    def on_row(self, row: dict[str, float]) -> None:
        """Pass a step's row to the launcher's own monitoring, if it has any."""

    async def close(self) -> None:
        """Stop everything that `start` started."""
