"""A probe that records the longest time for which the event loop ran nothing else."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class LoopProbe:
    """gap_s: the longest delay of a task that wants to run every millisecond."""

    def __init__(self) -> None:
        self.gap_s = 0.0

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[None]:
        """Measure while the block runs."""
        task = asyncio.create_task(self._run())
        await asyncio.sleep(0)
        try:
            yield
        finally:
            # A delay that is still lasting counts as well.
            await asyncio.sleep(0.002)
            task.cancel()

    async def _run(self) -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            self.gap_s, last = max(self.gap_s, now - last), now


async def usual_gap_s(seconds: float = 3.0) -> float:
    """The longest delay next to a thread of plain Python, which shows how busy the machine is."""
    probe, end = LoopProbe(), time.perf_counter() + seconds

    def compute() -> None:
        while time.perf_counter() < end:
            sum(range(100))

    async with probe():
        await asyncio.to_thread(compute)
    return probe.gap_s
