"""The interface of everything that samples: implemented by vLLM (in this process or others), a pool, and a fake.

It is asynchronous by design. `submit` queues a request and returns at once, so that requests submitted in the same turn
of the event loop always start in the same engine step. This makes a synchronous run repeatable bit for bit.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from volley.rollout.transport.protocol import ReceiverEnd
from volley.rollout.types import Completion, Logprobs, Sampling, TokenIds


class Engine(Protocol):
    """Samples completions under versioned weights."""

    @property
    def version(self) -> int:
        """Weight version being served; 0 for the initial weights."""
        ...

    @property
    def capacity(self) -> float:
        """Samples that it works on at once; do not send it more."""
        ...

    def submit(self, token_ids: TokenIds, sampling: Sampling, seed: int) -> list[asyncio.Future[Completion]]:
        """Queue one prompt; returns `sampling.num_samples` futures, each done when its completion ends.

        Sample i is drawn with its own random generator, seeded by seed + i, so it does not depend on what else is in
        flight. Must be called on the event loop. A future fails with the engine's error if the engine fails.
        """
        ...

    async def logprobs(self, sequences: Sequence[TokenIds]) -> list[Logprobs]:
        """Teacher-forced log-probs at temperature 1, for the parity check: [L - 1] for a sequence of L tokens, because
        the first token has none."""
        ...

    async def close(self) -> None:
        """Fail the requests in flight and free the engine."""
        ...


class WorkerEngine(Engine, ReceiverEnd, Protocol):
    """The engine of a rollout worker: it receives weights, and others can tell whether it is alive."""

    @property
    def num_steps(self) -> int:
        """Engine steps so far. If it does not change while requests are in flight, the engine hangs."""
        ...

    @property
    def is_dead(self) -> bool:
        """Whether its processes have ended."""
        ...

    async def process_ids(self) -> list[int]:
        """The processes that hold the model."""
        ...
