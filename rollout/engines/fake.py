"""An engine without a model: for tests and benchmarks of everything around the real one.

Completions are a pure function of (token ids, seed, sample number). The caller gives a function for how long each
takes, in seconds of the event loop's clock.
"""

import asyncio
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from volley.rollout.transport.protocol import JoinRequest, ReceiverEnd
from volley.rollout.transport.stream import TensorMeta
from volley.rollout.types import Completion, LoadedWeights, Logprobs, Sampling, TokenIds, as_token_ids


class FakeEngine(ReceiverEnd):
    """An engine without a model."""

    def __init__(
        self,
        answer: Callable[[Sequence[int], int], tuple[Sequence[int] | TokenIds, str]],
        delay: Callable[[int], float] = lambda number: 0.0,
        fail_at: int = 0,
        capacity: float = math.inf,
    ) -> None:
        """answer: (prompt token ids, 64-bit random number) -> (token ids, text). delay: random number -> seconds.
        fail_at: number of the request at which the engine fails; 0 for none."""
        self.version = self._committed = 0
        self.capacity = capacity
        self.num_requests = 0
        self.is_dead = False
        self._num_steps = 0
        self.loaded: list[dict[str, Any]] = []
        self._answer = answer
        self._delay = delay
        self._fail_at = fail_at
        self._tasks: set[asyncio.Task[Completion]] = set()

    def submit(self, token_ids: TokenIds, sampling: Sampling, seed: int) -> list[asyncio.Future[Completion]]:
        self.num_requests += 1
        if self.num_requests == self._fail_at:
            raise RuntimeError(f"the fake engine failed at request {self._fail_at}, as configured")
        tasks = [
            asyncio.get_running_loop().create_task(
                self._sample(tuple(token_ids.tolist()), sampling, seed, i, self.version)
            )
            for i in range(sampling.num_samples)
        ]
        for task in tasks:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return list(tasks)

    async def _sample(
        self, token_ids: tuple[int, ...], sampling: Sampling, seed: int, sample: int, version: int
    ) -> Completion:
        draw = "greedy" if sampling.temperature == 0 else seed + sample
        number = int.from_bytes(hashlib.blake2b(repr((token_ids, draw)).encode(), digest_size=8).digest())
        await asyncio.sleep(self._delay(number))
        tokens, text = self._answer(token_ids, number)
        kept = as_token_ids(tokens)[: sampling.max_tokens]
        reason = "stop" if len(kept) == len(tokens) else "length"
        return Completion.single(kept, np.full(len(kept), -1.0, np.float32), text, reason, version, self.version)

    async def logprobs(self, sequences: Sequence[TokenIds]) -> list[Logprobs]:
        return [np.full(len(sequence) - 1, -1.0, np.float32) for sequence in sequences]

    async def load_weights(self, weights: Iterable[tuple[str, Any]], version: int) -> None:
        self.loaded.append(dict(weights))
        self.version = version

    # What a `RolloutWorker` needs of its engine besides `Engine`.

    @property
    def num_steps(self) -> int:
        """Increases with every call, because it never hangs."""
        self._num_steps += 1
        return self._num_steps

    async def process_ids(self) -> list[int]:
        return []

    async def connect(self, request: JoinRequest) -> None:
        """Does nothing."""

    async def receive(self, metas: Sequence[TensorMeta]) -> str:
        return "fake"

    async def commit(self, version: int) -> LoadedWeights:
        self._committed = version
        return LoadedWeights(version, "fake")

    async def resume(self) -> int:
        self.version = self._committed
        return self.version

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
