"""What a rank computes, and where it is among its peers."""

import socket
from dataclasses import dataclass
from pathlib import Path

from volley.learner.config import LearnerConfig
from volley.learner.losses.common import Loss


@dataclass(frozen=True)
class RankSpec:
    """What a rank computes; the same for all ranks."""

    config: LearnerConfig
    loss: Loss
    model_dir: Path
    total_steps: int
    """For the learning rate's schedule."""
    temperature: float
    """Of the sampling distribution; logits are divided by it."""
    seed: int
    trust_remote_code: bool = False
    records_reference: bool = False
    """Whether shards bring the reference's log-probs, so that no second model is loaded."""


@dataclass(frozen=True)
class RankPlace:
    """Where a rank is among its peers."""

    rank: int = 0
    num_ranks: int = 1
    address: str = "127.0.0.1"
    """Of rank 0's machine, where the ranks meet."""
    port: int = 0
    own_address: str = "127.0.0.1"
    """Of this machine, for sending weights."""
    listener: socket.socket | None = None
    """On rank 0: the bound socket of `address` and `port`, if there is one already."""
