"""What an update reports: sums and counts over micro-batches and ranks."""

import math
from typing import Any

import torch
from torch import Tensor

Metrics = dict[str, tuple[Tensor, Tensor]]
"""Name -> (sum, count)."""


class Sums:
    """Sums and counts over micro-batches and ranks; names ending in _max keep the largest value."""

    def __init__(self) -> None:
        self.loss = 0.0
        self._values: dict[str, tuple[float, float]] = {}

    def add(self, loss: float, metrics: Metrics) -> None:
        self.loss += loss
        for name, (value, count) in metrics.items():
            self._merge(name, float(value), float(count))

    def _merge(self, name: str, value: float, count: float) -> None:
        old_value, old_count = self._values.get(name, (0.0, 0.0))
        if name.endswith("_max"):
            self._values[name] = (max(old_value, value), 1.0)
        else:
            self._values[name] = (old_value + value, old_count + count)

    def reduce(self, num_ranks: int) -> None:
        """Add up over all ranks."""
        if num_ranks == 1:
            return
        everyone: list[Any] = [None] * num_ranks
        torch.distributed.all_gather_object(everyone, (self.loss, self._values))
        self.loss, self._values = 0.0, {}
        for loss, values in everyone:
            self.loss += loss
            for name, (value, count) in values.items():
                self._merge(name, value, count)

    def means(self) -> dict[str, float]:
        return {name: value / count if count else math.nan for name, (value, count) in self._values.items()}
