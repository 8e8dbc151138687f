"""What an update reports: sums and counts over micro-batches and ranks, and what is worth knowing whatever the loss."""

import math
from typing import Any

import torch
from torch import Tensor

from volley.learner.compute.packing import Collated
from volley.learner.losses.common import MicroBatch, kl_estimate


def observed(data: Collated, micro: MicroBatch, entropy_M: Tensor, signal: str) -> dict[str, tuple[Tensor, Tensor]]:
    """What is worth knowing of every update, whatever the loss: entropy, and for sampled completions how far policy
    and behaviour lie apart (k3 estimate of KL(behaviour || policy); |difference| of log-probs, on fresh samples only,
    where it is numerical noise)."""
    with torch.no_grad():
        mask_NT, num_tokens = micro.mask_NT, micro.mask_NT.sum()
        metrics = {"entropy": (entropy_M.sum(), num_tokens)}
        if signal not in ("advantages", "rewards"):
            return metrics
        metrics["kl_behaviour"] = (
            (kl_estimate("k3", micro.behaviour_NT, micro.logprobs_NT) * mask_NT).sum(),
            num_tokens,
        )
        fresh_NT = mask_NT * data.fresh_N[:, None]
        if fresh_NT.any():
            gap_NT = (micro.logprobs_NT - micro.behaviour_NT).abs() * fresh_NT
            metrics["logprob_mismatch_mean"] = (gap_NT.sum(), fresh_NT.sum())
            metrics["logprob_mismatch_max"] = (gap_NT.amax(), fresh_NT.new_ones(()))
        return metrics


class Sums:
    """Sums and counts over micro-batches and ranks; names ending in _max keep the largest value."""

    def __init__(self) -> None:
        self.loss = 0.0
        self._values: dict[str, tuple[float, float]] = {}

    def add(self, loss: float, metrics: dict[str, tuple[Tensor, Tensor]]) -> None:
        self.loss += loss
        for name, (value, count) in metrics.items():
            self._merge(name, float(value), float(count))

    def _merge(self, name: str, value: float, count: float) -> None:
        old_value, old_count = self._values.get(name, (0.0, 0.0))
        if name.endswith("_max"):
            self._values[name] = (max(old_value, value), 1.0)
        else:
            self._values[name] = (old_value + value, old_count + count)

    def reduce(self, num_ranks: int, device: torch.device) -> None:
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
