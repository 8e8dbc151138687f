"""The offline source: hands out the groups of a data set instead of sampling them."""

import asyncio
from collections.abc import Callable
from typing import Any

from volley.cluster.loop.buffer import with_residual
from volley.rollout.data.dataset_groups import DatasetGroups
from volley.rollout.types import ScoredGroup


class DatasetSource:
    """A `Source` that returns a data set's groups in order.

    version: the current weight version. Groups are marked with it, so that none is ever stale.
    """

    def __init__(self, groups: DatasetGroups, version: Callable[[], int]) -> None:
        self._groups = groups
        self._version = version
        self._next_ordinal = 0

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Nothing runs in the background."""

    async def take(self, num_groups: int) -> list[ScoredGroup]:
        """The next groups of the order."""
        first = self._next_ordinal
        self._next_ordinal += num_groups
        version = self._version()
        return [self._groups.group_at(ordinal, version) for ordinal in range(first, self._next_ordinal)]

    def replaced(self) -> dict[str, int]:
        """Nothing is ever replaced."""
        return {}

    async def release(self, num_groups: int) -> None:
        """There are no slots."""

    def stop(self) -> None:
        """Nothing is in flight."""

    def metrics(self) -> dict[str, float]:
        """The accounting with its residual."""
        return with_residual(self.accounting())

    def accounting(self) -> dict[str, int]:
        """issued, trained, queued, in_flight, in groups. Over-long rows are not in the order, so never issued."""
        return {"issued": self._next_ordinal, "trained": self._next_ordinal, "queued": 0, "in_flight": 0}

    def state(self) -> dict[str, Any]:
        """For a checkpoint: the position in the order."""
        return {"next_ordinal": self._next_ordinal}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self._next_ordinal = state["next_ordinal"]
