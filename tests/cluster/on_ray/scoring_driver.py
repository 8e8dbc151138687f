"""Score the same completions with and without actors on a private Ray cluster; a program for test_scoring.py.

    python -m tests.cluster.on_ray.scoring_driver RECIPE [SIGNAL]

With SIGNAL ("KILL" or "STOP"), one of the two actors gets it while it scores. Prints JSON: both lists of scores, and
the lines that the user sees.
"""

import asyncio
import json
import os
import signal
import sys
from dataclasses import asdict

import psutil

from tests.cluster.leftovers import title_of
from volley.cluster.on_ray.token import discard_own_token, prepare_token
from volley.cluster.recipe.config import Recipe, load_recipe
from volley.rewards.scoring.scorer import Scorer
from volley.rollout.types import Completion, Prompt, Score, as_token_ids

NUM_ITEMS = 120


def completion_of(index: int) -> Completion:
    """Right and wrong answers, one response that takes too long, and one that ends its scoring process."""
    words = {17: "hang", 34: "exit"}.get(index, f"The answer is \\boxed{{{index % 3}}}.")
    return Completion.single((1, 2), (-0.1, -0.2), words, "stop", 0, 0)


async def scores_of(scorer: Scorer) -> list[Score]:
    prompts = [Prompt(i, i, "What?", as_token_ids((1,)), "1", {"extra": i}) for i in range(NUM_ITEMS)]
    return list(await asyncio.gather(*(scorer.score(prompt, completion_of(prompt.index)) for prompt in prompts)))


def actors() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [each for each in children if title_of(each).startswith("ray::ScoringActor")]


async def compare(recipe: Recipe, number: str) -> dict[str, object]:
    import ray

    from volley.cluster.on_ray.scoring import ActorScorer, ScoringSpec

    async def nodes() -> list[str]:
        return [node["NodeID"] for node in ray.nodes()] * 2

    async with Scorer(recipe.rewards, recipe.scorer) as scorer:
        local = await scores_of(scorer)
    lines: list[str] = []
    spec = ScoringSpec(recipe.rewards, recipe.scorer, os.getcwd())
    async with Scorer(recipe.rewards, recipe.scorer, ActorScorer(recipe, spec, 1, nodes, lines.append)) as scorer:
        scoring = asyncio.ensure_future(scores_of(scorer))
        if number:
            await asyncio.sleep(1)
            assert not scoring.done()
            assert len(actors()) == 2
            actors()[0].send_signal(getattr(signal, f"SIG{number}"))
        remote = await scoring
        again = await scores_of(scorer)
    return {
        "local": [asdict(score) for score in local],
        "remote": [asdict(score) for score in remote],
        "again": [asdict(score) for score in again],
        "lines": lines,
    }


def main() -> None:
    recipe = load_recipe(sys.argv[1], [])
    prepare_token(recipe)
    from volley.cluster.on_ray import connection

    connection.connect(recipe)
    try:
        print(json.dumps(asyncio.run(compare(recipe, sys.argv[2] if len(sys.argv) > 2 else ""))))
    finally:
        connection.disconnect()
        discard_own_token()


if __name__ == "__main__":
    main()
