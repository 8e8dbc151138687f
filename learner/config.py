"""Configuration of the learner."""

import math
from dataclasses import dataclass

from volley.rollout.errors import ConfigError, require_at_least


@dataclass(frozen=True)
class LearnerConfig:
    """How the weights are updated."""

    ranks: int = 1
    """Processes that share the work, one per GPU."""
    dtype: str = "bf16"
    """"bf16" (with float32 master weights) or "fp32"."""
    zero_stage: int = 2
    """What DeepSpeed shards over the ranks: 0 nothing, 1 optimizer state, 2 also gradients, 3 also weights."""
    lr: float = 1e-6
    """Peak learning rate."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    schedule: str = "constant"
    """"constant", or "linear" or "cosine" decay to lr * min_lr_share at the last step."""
    min_lr_share: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    """Of AdamW."""
    weight_decay: float = 0.0
    """For matrices only."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; 0 disables clipping."""
    max_tokens_per_micro_batch: int = 16384
    """Tokens in one forward pass, padding included."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them."""
    cpu_offload: bool = False
    """Keep the optimizer state in host memory (ZeRO 1 to 3)."""
    logprob_chunk_bytes: int = 128 << 20
    """Size limit of the float32 logits of one chunk."""

    def __post_init__(self) -> None:
        choices = {"dtype": ("bf16", "fp32"), "zero_stage": (0, 1, 2, 3), "schedule": ("constant", "linear", "cosine")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                options = ", ".join(map(repr, allowed))
                raise ConfigError(f"learner.{name} is {getattr(self, name)!r}; it must be one of {options}.")
        at_least = {
            "ranks": 1,
            "warmup_steps": 0,
            "weight_decay": 0,
            "max_grad_norm": 0,
            "max_tokens_per_micro_batch": 1,
            "logprob_chunk_bytes": 1,
        }
        require_at_least(self, at_least, "learner.")
        if self.lr <= 0:
            raise ConfigError(f"learner.lr is {self.lr}; it must be above 0.")
        if not 0 <= self.min_lr_share <= 1:
            raise ConfigError(f"learner.min_lr_share is {self.min_lr_share}; it must be between 0 and 1.")
        if self.cpu_offload and self.zero_stage == 0:
            raise ConfigError("learner.cpu_offload needs learner.zero_stage 1, 2 or 3; stage 0 has nothing to offload.")

    def rate_at(self, step: int, total_steps: int) -> float:
        """The learning rate of the next step, after `step` steps: linear warm-up, then the schedule."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        share = (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps)
        decay = {"constant": 1.0, "linear": 1.0 - share, "cosine": 0.5 * (1.0 + math.cos(math.pi * share))}
        return self.lr * (self.min_lr_share + (1.0 - self.min_lr_share) * decay[self.schedule])


@dataclass(frozen=True)
class SignalConfig:
    """How rewards become what pair and label losses read."""

    pairs: str = "best_worst"
    """"best_worst" (one pair per group) or "all" (every ordered pair of a group)."""
    margin: float = 0.0
    """The smallest difference of rewards that makes a pair. Ties never make one."""
    threshold: float = 0.5
    """A completion with at least this reward is desirable."""

    def __post_init__(self) -> None:
        if self.pairs not in ("best_worst", "all"):
            raise ConfigError(f"signal.pairs is '{self.pairs}'; it must be 'best_worst' or 'all'.")
        if not 0 <= self.margin < float("inf"):
            raise ConfigError(f"signal.margin is {self.margin}; it must be 0 or more.")
