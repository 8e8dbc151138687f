"""Configuration of rewards."""

import os
from dataclasses import dataclass, field
from typing import Any

from volley.rollout.errors import ConfigError


@dataclass(frozen=True)
class RewardConfig:
    """One term of the weighted sum."""

    name: str
    """A built-in reward, or a function as `my_file.py:function` or `package.module:function`."""
    weight: float = 1.0
    """The factor of the term in the sum."""
    label: str = ""
    """The name in metrics (`reward/<label>`). The default is the name, or the function's own name."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the reward, for example the limits of a length penalty."""
    accuracy: bool = False
    """Whether the value 1.0 of this term means "correct". At most one term; the default is `math` if it is used."""

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("rewards: a term has an empty name.")
        if not self.label:
            object.__setattr__(self, "label", self.name.rsplit(":", 1)[-1])


@dataclass(frozen=True)
class ScorerConfig:
    """The service that scores completions."""

    workers: int = 0
    """Number of scoring processes; on a Ray cluster of several nodes, on each node that has rollout workers. 0 means
    one per core that this process may use."""
    timeout_s: float = 5.0
    """Time limit for scoring one response. The process that exceeds it is killed and replaced."""
    memory_bytes: int = 2 << 30
    """Address space that a scoring process may use in addition to what it starts with."""
    network: bool = True
    """Whether user functions may use the network. Processes with built-in rewards only never may, if the system can
    forbid it."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ConfigError(f"scorer.workers is {self.workers}; it must be 0 (one per core) or more.")
        if self.timeout_s <= 0:
            raise ConfigError(f"scorer.timeout_s is {self.timeout_s}; it must be above 0.")

    @property
    def num_workers(self) -> int:
        """The number of scoring processes to start on this machine."""
        return self.workers or len(os.sched_getaffinity(0))
