"""Scoring in actors on Ray against scoring in processes of the driver, both on this machine with as many processes.

    .venv/bin/python benchmarks/scoring_actors.py [--rounds 3] [--items 4000]

It prints answers per second of wall-clock time, and the driver's own processor time per answer: what a driver with many
rollout nodes pays. Easy answers (integers) are judged without a scoring process in a local run; symbolic ones need one.
The two ways alternate; medians.
"""

import argparse
import asyncio
import os
import random
import statistics
import time
from collections.abc import Sequence

from scoring import IN_FLIGHT, Case
from verifiers import integers, symbolic

from volley.cluster.on_ray.token import discard_own_token, prepare_token
from volley.cluster.recipe.config import Recipe, parse_recipe
from volley.rewards.scoring.scorer import Scorer
from volley.rollout.types import Completion, Prompt, as_token_ids


async def measure(scorer: Scorer, cases: Sequence[Case]) -> tuple[float, float]:
    """Answers per second, and microseconds of the driver's processor time per answer."""
    turns = asyncio.Semaphore(IN_FLIGHT)

    async def is_agreed(response: str, answer: str, is_right: bool) -> bool:
        async with turns:
            completion = Completion.single((), (), response, "stop", 0, 0)
            score = await scorer.score(Prompt(0, 0, "", as_token_ids(()), answer), completion)
            return (score.accuracy == 1.0) == is_right

    started, processor_started = time.perf_counter(), time.process_time()
    verdicts = await asyncio.gather(*(is_agreed(*case) for case in cases))
    seconds, processor_s = time.perf_counter() - started, time.process_time() - processor_started
    assert all(verdicts), "a verdict is wrong"
    return len(cases) / seconds, processor_s / len(cases) * 1e6


async def compare(recipe: Recipe, rounds: int, num_items: int) -> None:
    import ray

    from volley.cluster.on_ray.scoring import ActorScorer, ScoringSpec

    async def nodes() -> list[str]:
        return [ray.get_runtime_context().get_node_id()]

    spec = ScoringSpec(recipe.rewards, recipe.scorer, os.getcwd())
    remote = ActorScorer(recipe, spec, 1, nodes, print)
    async with Scorer(recipe.rewards, recipe.scorer) as local, Scorer(recipe.rewards, recipe.scorer, remote) as actors:
        for name, make in (("integers", integers), ("symbolic", symbolic)):
            found: dict[str, list[tuple[float, float]]] = {"processes": [], "actors": []}
            for index in range(-1, rounds):
                for where, scorer in (("processes", local), ("actors", actors)):
                    chance = random.Random(f"{name} {index} {where}")
                    result = await measure(scorer, [make(chance) for _ in range(num_items)])
                    if index >= 0:  # the first round warms up
                        found[where].append(result)
            for where, results in found.items():
                rate, processor_us = (statistics.median(column) for column in zip(*results, strict=True))
                print(
                    f"{name:10} {where:10} {rate:8,.0f} answers/s   driver {processor_us:6,.0f} us/answer", flush=True
                )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--items", type=int, default=4000)
    options = parser.parse_args()
    content = {"name": "scoring", "model": "m", "steps": 1, "launcher": "ray", "data": {"train": "t"}}
    recipe = parse_recipe(content | {"rewards": ["math"], "scorer": {"workers": len(os.sched_getaffinity(0))}})
    prepare_token(recipe)
    from volley.cluster.on_ray import connection

    connection.connect(recipe)
    try:
        asyncio.run(compare(recipe, options.rounds, options.items))
    finally:
        connection.disconnect()
        discard_own_token()


if __name__ == "__main__":
    main()
