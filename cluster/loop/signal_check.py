"""Which groups are worth a step: a group that teaches nothing is replaced before the loop sees it."""

from dataclasses import dataclass

from volley.learner.config import SignalConfig
from volley.learner.losses.common import Loss
from volley.rollout.types import ScoredGroup


@dataclass(frozen=True, slots=True)
class LossSignalCheck:
    """Says why a group teaches the loss nothing, "" if it does teach: `GroupBuffer` replaces the group then."""

    loss: Loss
    config: SignalConfig
    joins_dataset: bool
    """Groups hold a data set's completion next to the policy's (SPIN)."""

    def __call__(self, group: ScoredGroup) -> str:
        reason = self.loss.signal.reason_against(group, self.config)
        # A policy that repeats the data's completion is not a bad sample: it is how a self-play run ends.
        return "" if reason == "same" and self.joins_dataset else reason
