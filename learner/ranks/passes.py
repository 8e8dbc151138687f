"""Forward passes of one rank over its planned rows: under the policy, for the values, and under the reference."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from volley.learner.compute.collate import Collated, collate
from volley.learner.compute.reference import FrozenCopy
from volley.learner.losses.common import MicroBatch
from volley.learner.ranks.zero import ZeroEngine
from volley.learner.signals.batch import MicroBatchPart, Prepared
from volley.learner.signals.rows import Floats, PlannedRows, Rows, starts_of

FILLER = Rows(
    np.zeros(2, dtype=np.int32),
    np.array([False, True]),
    np.zeros(2, dtype=np.float32),
    np.array([0, 2]),
    np.array([0, 1]),
    np.array([1]),
    np.array([0]),
)
"""What a rank computes, with weight 0, in a pass in which it has no rows."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One micro-batch of some planned rows."""

    data: Collated
    completions: slice
    """Its completions among those of the rank; empty where the rank only keeps step."""
    tokens: slice
    """Its trained tokens among those of the rank."""
    is_last: bool

    @property
    def is_empty(self) -> bool:
        return self.completions.start == self.completions.stop


class Passes:
    """The forward passes of a rank. An `Evaluator` for signals."""

    def __init__(self, zero: ZeroEngine, reference: FrozenCopy | None, temperature: float, pad_id: int) -> None:
        self._zero = zero
        self._reference = reference
        self._temperature = temperature
        self._pad_id = pad_id

    def over(self, planned: PlannedRows) -> Iterator[Pass]:
        """The micro-batches of the plan, in order."""
        starts, tokens = starts_of(planned.sizes).tolist(), starts_of(planned.rows.trained_per_completion)
        for i, (start, end) in enumerate(itertools.pairwise(starts)):
            rows = planned.rows.part(start, end) if end > start else FILLER
            data = collate(rows, self._pad_id).to(self._zero.device)
            places = slice(int(tokens[start]), int(tokens[end]))
            yield Pass(data, slice(start, end), places, i == len(planned.sizes) - 1)

    def forward(self, data: Collated) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probs, entropies and values of the trained tokens, [M] each, as `PolicyModel.forward`."""
        logprobs_M, entropy_M, values_M = self._zero.forward(*data.model_inputs, self._temperature)
        return logprobs_M, entropy_M, values_M

    def micro_batch(
        self, work: PlannedRows, each: Pass, prepared: Prepared, logprobs_M: Tensor, values_M: Tensor
    ) -> MicroBatch[Any]:
        """What the loss reads of one pass. work: the rows that the pass is of."""
        data = each.data
        part = MicroBatchPart(each.completions, each.tokens, data.behaviour_NT, values_M, data.scatter)
        return MicroBatch(
            data.scatter(logprobs_M), data.mask_NT, self._reference_NT(work, each), prepared.tensors(part)
        )

    def _reference_NT(self, planned: PlannedRows, each: Pass) -> Tensor | None:
        """Log-probs under the reference, recorded or computed; None without one."""
        if planned.reference is not None:
            recorded = torch.tensor(planned.reference[each.tokens], device=self._zero.device)
            return each.data.scatter(recorded)
        return None if self._reference is None else each.data.scatter(self._reference.logprobs_M(each.data))

    def policy(self, planned: PlannedRows, temperature: float | None = None) -> Floats:
        """[M], log-probs under the policy. temperature: by default that of the sampling distribution."""
        chosen = self._temperature if temperature is None else temperature
        return self._collect(planned, lambda data: self._zero.forward(*data.model_inputs, chosen, False)[0])

    def values(self, planned: PlannedRows) -> Floats:
        """[M], values of the states before the trained tokens."""
        return self._collect(
            planned, lambda data: self._zero.forward(*data.model_inputs, self._temperature, False, False)[2]
        )

    def reference(self, planned: PlannedRows) -> Floats:
        """[M], log-probs under the reference."""
        if planned.reference is not None:
            return planned.reference
        assert self._reference is not None, "the loss needs a reference"
        return self._collect(planned, self._reference.logprobs_M)

    def total(self, values: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Sums over all ranks, in float64."""
        if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
            return values
        sums = torch.tensor(values, dtype=torch.float64, device=self._zero.device)
        torch.distributed.all_reduce(sums)
        return sums.cpu().numpy()

    def _collect(self, planned: PlannedRows, compute: Callable[[Collated], Tensor]) -> Floats:
        found = [np.zeros(0, dtype=np.float32)]
        with torch.no_grad():
            for each in self.over(planned):
                values_M = compute(each.data)
                if not each.is_empty:
                    found.append(values_M.float().cpu().numpy())
        return np.concatenate(found)
