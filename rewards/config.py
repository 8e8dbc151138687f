"""Configuration of rewards."""

from dataclasses import dataclass, field
from typing import Any

from volley.rollout.errors import ConfigError


@dataclass(frozen=True)
class RewardConfig:
    """One term of the weighted sum.

    name: a built-in reward, or a function as `my_file.py:function` or `package.module:function`.
    label: the name in metrics (`reward/<label>`); by default the name, or the function's own name.
    options: keyword arguments of the reward (for instance the limits of a length penalty).
    accuracy: whether the term's value 1.0 means "correct"; at most one term; by default `math` where it is used.
    """

    name: str
    weight: float = 1.0
    label: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    accuracy: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("rewards: a term has an empty name.")
        if not self.label:
            object.__setattr__(self, "label", self.name.rsplit(":", 1)[-1])


@dataclass(frozen=True)
class ScorerConfig:
    """The service that scores. workers: child processes (0: one per core, 4 at most). timeout_s: what one response's
    scoring may take before its child is killed; memory_bytes: address space of a child beyond what it starts with.
    network: whether your own functions may use it; children with built-in rewards only never do, where the system can
    forbid it."""

    workers: int = 0
    timeout_s: float = 5.0
    memory_bytes: int = 2 << 30
    network: bool = True

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ConfigError(f"scorer.workers is {self.workers}; it must be 0 (one per core) or more.")
        if self.timeout_s <= 0:
            raise ConfigError(f"scorer.timeout_s is {self.timeout_s}; it must be above 0.")
