"""SFT: maximum likelihood of demonstrations.

    L = -1/tokens sum_{i,t} log pi(y_it)

The mean runs over the trained tokens of the global batch, which exclude prompts. Rewards and behaviour log-probs are
not used. Not included: weights per completion, label smoothing.
"""

from dataclasses import dataclass
from typing import ClassVar

from volley.learner.losses.common import Loss, LossSum, MicroBatch
from volley.learner.losses.guide import Guide
from volley.learner.signals.batch import SignalTensors
from volley.learner.signals.demonstrations import Demonstrations


@dataclass(frozen=True)
class Sft(Loss):
    """No options."""

    signal: ClassVar[type[Demonstrations]] = Demonstrations
    guide: ClassVar[Guide] = Guide(
        "SFT",
        merit="SFT trains on the responses in the data; it is the default and the first step before most other methods",
        lr=1e-5,
        epochs=2,
    )

    def normalizer(self, num_tokens: int, num_sequences: int, num_pairs: int = 0) -> float:
        return num_tokens

    def loss_sum(self, micro: MicroBatch[SignalTensors]) -> LossSum:
        return LossSum(-(micro.logprobs_NT * micro.mask_NT).sum(), {})
