"""Completions to imitate: what supervised losses learn from."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from volley.learner.config import SignalConfig
from volley.learner.signals.batch import Batch, Drawn, MicroBatchPart, ReadySignal, SignalTensors, scored
from volley.learner.signals.rows import Indices
from volley.rollout.types import ScoredGroup


@dataclass(frozen=True, slots=True)
class Demonstrations(ReadySignal):
    """Every completion is to be imitated; the losses read log-probs alone."""

    label: ClassVar[str] = "demonstrations"
    from_policy: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = ("completion",)

    @classmethod
    def make_batch(cls, drawn: Drawn, loss: Any) -> Batch:
        return Batch(scored(drawn.groups, drawn.version)[0], cls())

    @classmethod
    def reason_against(cls, group: ScoredGroup, config: SignalConfig) -> str:
        return "" if any(not math.isnan(reward) for reward in group.rewards) else "unscorable"

    @classmethod
    def read(cls, row: Mapping[str, Any], text: Callable[[str], str], where: str) -> list[tuple[str, float]]:
        return [(text("completion"), 1.0)]

    def take(self, completions: Indices) -> "Demonstrations":
        return self

    def tensors(self, part: MicroBatchPart) -> SignalTensors:
        return SignalTensors()
