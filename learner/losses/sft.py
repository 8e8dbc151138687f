"""SFT: maximum likelihood of demonstrations.

    L = -1/tokens sum_{i,t} log pi(y_it)

The mean runs over the completion tokens of the global batch; prompts are not learned. Reads neither rewards nor
behaviour log-probs. Leaves out: weights per row, label smoothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from volley.learner.losses.common import LossSum, MicroBatch


@dataclass(frozen=True)
class Sft:
    """No options."""

    signal: ClassVar[str] = "demonstrations"
    whitens: ClassVar[bool] = False
    min_group_size: ClassVar[int] = 1
    needs_reference: ClassVar[bool] = False

    def advantages(self, rewards_G: Sequence[float]) -> list[float]:
        return []

    def normalizer(self, num_tokens: int, num_sequences: int, num_pairs: int = 0) -> float:
        return num_tokens

    def loss_sum(self, micro: MicroBatch) -> LossSum:
        return LossSum(-(micro.logprobs_NT * micro.mask_NT).sum(), {})
