"""The door to whatever samples: one small protocol, implemented by vLLM (in process or not) and by a fake.

Asynchronous by design: `submit` queues a request and returns at once, so that requests submitted in the same turn of
the event loop always start in the same engine step; that is what makes a synchronous run repeatable bit for bit.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from volley.rollout.errors import LostError
from volley.rollout.types import Completion, Logprobs, TokenIds


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. num_samples: completions per prompt (G). temperature 0 is greedy. stop: strings that end a
    completion (not kept in its text). max_tokens: completion tokens at most."""

    num_samples: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()


class EngineLost(LostError):
    """An engine is gone for good; the message names it and says in which phase."""


class Engine(Protocol):
    """Samples completions under versioned weights."""

    version: int
    """Weight version being served: 0 for the weights it was started with."""
    capacity: float
    """Samples that it works on at once; beyond that it should be sent none."""

    def submit(self, token_ids: TokenIds, sampling: Sampling, seed: int) -> list[asyncio.Future[Completion]]:
        """Queue one prompt; returns `sampling.num_samples` futures, each done as its completion ends.

        Sample i is drawn with its own generator seeded by seed + i, so it does not depend on what else is in
        flight. Must be called on the event loop. A future fails with the engine's error if the engine dies.
        """
        ...

    async def logprobs(self, sequences: Sequence[TokenIds]) -> list[Logprobs]:
        """Teacher-forced log-probs at temperature 1: for a sequence of T tokens, T - 1 numbers (the first token has
        none). For the parity measurement."""
        ...

    async def close(self) -> None:
        """Fail what is in flight and free the engine."""
        ...
