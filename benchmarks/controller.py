"""The queue and the controller alone: simulated rollout workers, real buffer, pool, and worker protocol.

    .venv/bin/python benchmarks/controller.py [--trajectories 200000]

Each worker is a real `RolloutWorker` behind a real `RemoteEngine`, in this process, around a fake engine that answers
512 tokens after a while. Shown: trajectories/s, the cost of one with 1,000 workers against 10, memory at a tenth of the
way and at the end, and that every prompt came through exactly once.
"""

import argparse
import asyncio
import time
from collections.abc import Awaitable, Sequence
from functools import partial
from typing import Any

import psutil

from volley.cluster.launch.environment import tune_interpreter
from volley.cluster.loop.buffer import BufferConfig, GroupBuffer
from volley.cluster.loop.rollout import Rollout
from volley.rollout.engines.fake import FakeEngine
from volley.rollout.engines.pool import RolloutPool
from volley.rollout.engines.remote import RemoteEngine
from volley.rollout.engines.worker import RolloutWorker
from volley.rollout.types import Completion, Prompt, Sampling, Score, as_token_ids

GROUP_SIZE = 8
GROUPS_PER_STEP = 500
IN_FLIGHT = 3 * GROUPS_PER_STEP * GROUP_SIZE
TOKENS = as_token_ids(range(512))


class NoScores:
    """Any score will do."""

    async def score(self, prompt: Prompt, completion: Completion) -> Score:
        return Score(float(prompt.ordinal % 2), {})

    async def score_group(
        self, prompt: Prompt, completions: Sequence[Completion], scores: Sequence[Score]
    ) -> tuple[Score, ...]:
        return tuple(scores)

    def metrics(self) -> dict[str, float]:
        return {}


def call(worker: RolloutWorker, method: str, *arguments: Any) -> Awaitable[Any]:
    return getattr(worker, method)(*arguments)  # type: ignore[no-any-return]


async def simulate(num_workers: int, num_trajectories: int) -> dict[str, float]:
    tune_interpreter()
    engines = []
    for index in range(num_workers):
        # As much in flight with few workers as with many: the simulated waiting costs time of its own.
        capacity = IN_FLIGHT // num_workers
        fake = FakeEngine(
            lambda ids, number: (TOKENS, ""), lambda number: 0.02 + number % 100 * 1e-3, capacity=capacity
        )
        engine = RemoteEngine(str(index), partial(call, RolloutWorker(lambda fake=fake: fake)))
        await engine.start(10)
        engines.append(engine)
    rollout = Rollout(RolloutPool(engines), NoScores(), 0)
    buffer = GroupBuffer(
        lambda ordinal: Prompt(ordinal, ordinal, "", as_token_ids((ordinal,)), ""),
        lambda prompt: rollout(prompt, Sampling(GROUP_SIZE)),
        lambda group: "",
        BufferConfig(GROUPS_PER_STEP, 2, 0),
    )
    seen: set[int] = set()
    memory: dict[int, int] = {}
    async with asyncio.TaskGroup() as tasks:
        buffer.start(tasks)
        # What is issued at the start is the same work for any number of workers, and under way still at the end.
        await asyncio.sleep(0)
        started = time.process_time(), time.perf_counter()
        while len(seen) * GROUP_SIZE < num_trajectories:
            groups = await buffer.take(GROUPS_PER_STEP)
            for group in groups:
                assert group.prompt.ordinal not in seen, "a prompt came twice"
                assert len({id(completion) for completion in group.completions}) == GROUP_SIZE
                seen.add(group.prompt.ordinal)
            if not memory and len(seen) * GROUP_SIZE >= num_trajectories / 10:
                memory[0] = psutil.Process().memory_info().rss
            await buffer.release(GROUPS_PER_STEP)
        cpu, wall = time.process_time() - started[0], time.perf_counter() - started[1]
        memory[1] = psutil.Process().memory_info().rss
        accounting = buffer.accounting()
        buffer.stop()
    assert seen == set(range(len(seen))), "a prompt was skipped"
    assert accounting["issued"] == accounting["trained"] + accounting["queued"] + accounting["in_flight"]
    for engine in engines:
        await engine.close()
    count = len(seen) * GROUP_SIZE
    return {
        "trajectories/s": count / wall,
        "cpu microseconds each": cpu / count * 1e6,
        "MiB at a tenth": memory[0] / 2**20,
        "MiB at the end": memory[1] / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trajectories", type=int, default=200_000)
    options = parser.parse_args()
    results = {}
    for num_workers in (10, 1000):
        results[num_workers] = asyncio.run(simulate(num_workers, options.trajectories))
        shown = "  ".join(f"{name} {value:,.0f}" for name, value in results[num_workers].items())
        print(f"{num_workers} workers: {shown}", flush=True)
    cost = "cpu microseconds each"
    print(f"cost of a trajectory, 1,000 workers / 10: {results[1000][cost] / results[10][cost]:.2f}")


if __name__ == "__main__":
    main()
