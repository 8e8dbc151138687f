"""The loop with a judge behind a real endpoint: its scores in a step's groups, and an endpoint that dies on the way."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from volley.cluster.cli.main import report_error
from volley.cluster.loop.buffer import BufferConfig, GroupBuffer
from volley.cluster.loop.group_metrics import group_metrics
from volley.cluster.loop.interfaces import Evaluation, Step
from volley.cluster.loop.loop import LoopParts, train
from volley.cluster.loop.rollout import Rollout
from volley.cluster.recipe.config import Recipe, parse_recipe
from volley.learner.losses import LOSSES
from volley.learner.signals.batch import Batch, Update
from volley.rewards.judge.fake_endpoint import MODEL, Endpoint, Reply
from volley.rewards.scoring.scorer import Scorer
from volley.rollout.engines.fake import FakeEngine
from volley.rollout.engines.pool import RolloutPool
from volley.rollout.errors import RewardError
from volley.rollout.types import Prompt, ScoredGroup, as_token_ids

CONSTITUTION = Path(__file__).parents[3] / "recipes" / "constitution.txt"


class CountingLearner:
    def __init__(self) -> None:
        self.step = 0

    async def update(self, batch: Batch) -> Update:
        self.step += 1
        return Update({"loss": 0.0})

    async def refresh_reference(self) -> None: ...


class MetricsLog:
    """What a step's groups and the judge have to tell."""

    def __init__(self, rollout: Rollout) -> None:
        self.rows: list[dict[str, Any]] = []
        self._roller = rollout

    @asynccontextmanager
    async def phase(self, name: str) -> AsyncIterator[None]:
        yield

    @asynccontextmanager
    async def deadline(self, name: str) -> AsyncIterator[None]:
        yield

    async def step(self, done: Step) -> None:
        self.rows.append({**group_metrics(done.groups, done.trained), **self._roller.metrics()})

    async def distinguishability(self, num_steps: int) -> float:
        raise AssertionError("the method has no rounds")

    async def evaluation(self, step: int, result: Evaluation) -> None: ...


def recipe_with(endpoint: Endpoint, **judge: Any) -> Recipe:
    options = {"endpoint": endpoint.url, "model": MODEL, "principles": str(CONSTITUTION), "retries": 0, **judge}
    return parse_recipe(
        {
            "name": "judged",
            "model": "m",
            "data": {"train": "t"},
            "steps": 6,
            "groups_per_step": 4,
            "max_staleness": 1,
            "rollout": {"group_size": 4},
            "rewards": [{"name": "judge", "options": options}, {"name": "think_format", "weight": 0.1}],
        }
    )


async def trained(recipe: Recipe) -> list[dict[str, Any]]:
    """The rows of a run whose engine writes responses of 0 to 6 letters."""
    engine = FakeEngine(lambda ids, number: ([number % 7, 1], "x" * (number % 7)), lambda number: number % 5 * 0.0004)
    async with Scorer(recipe.rewards, recipe.scorer) as scorer:
        rollout = Rollout(RolloutPool([engine]), scorer, 0)
        source = GroupBuffer(
            lambda ordinal: Prompt(ordinal, ordinal, "write", as_token_ids((ordinal,)), ""),
            lambda prompt: rollout(prompt, recipe.rollout.sampling),
            lambda group: "",
            BufferConfig(recipe.groups_per_step, recipe.max_staleness, 0),
        )
        log = MetricsLog(rollout)

        class Own:
            """Publisher, evaluator and checkpointer."""

            @property
            def version(self) -> int:
                return engine.version

            async def publish(self, groups: Sequence[ScoredGroup]) -> None:
                await engine.load_weights([("w", 0)], engine.version + 1)

            async def evaluate(self) -> Evaluation:
                raise AssertionError("no evaluation was asked for")

            async def save(self, step: int) -> None: ...

        own = Own()
        parts = LoopParts(source, LOSSES["grpo"](), CountingLearner(), own, own, own, log)
        await train(recipe, parts, asyncio.Event())
        return log.rows


def by_length(request: dict[str, Any]) -> Reply:
    """Longer is better."""
    response = request["messages"][1]["content"].split("<judged_response>\n")[1].split("\n</judged_response>")[0]
    return Reply(json.dumps({"reasoning": "so", "score": 1 + len(response)}))


def test_rewards_of_a_judge_reach_the_learner() -> None:
    async def main() -> list[dict[str, Any]]:
        async with Endpoint(by_length) as endpoint:
            return await trained(recipe_with(endpoint))

    rows = asyncio.run(main())
    assert len(rows) == 6
    for row in rows:
        assert row["reward/judge"] == pytest.approx(row["reward_mean"] - 0.1 * row["reward/think_format"])
        assert 0 < row["reward/judge"] < 6 / 9
        assert row["unscorable"] == 0
    # NaN where a call came back just before a step's row and its judgement just after.
    assert not any(row["judge/unscorable_share"] > 0 for row in rows)
    assert any(row["judge/unscorable_share"] == 0 for row in rows)
    assert sum(row["judge/calls"] for row in rows) <= 7 * 4 * 4, "no group is judged twice"
    assert sum(row["judge/calls"] for row in rows) > 30


def test_an_endpoint_that_dies_ends_the_run_with_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    alive = 40

    def answer(request: dict[str, Any]) -> Reply:
        nonlocal alive
        alive -= 1
        return by_length(request) if alive > 0 else Reply(status=503, body="out of memory")

    async def main() -> None:
        async with Endpoint(answer) as endpoint:
            await trained(recipe_with(endpoint))

    started = time.monotonic()
    with pytest.raises(ExceptionGroup) as raised:
        asyncio.run(main())
    assert time.monotonic() - started < 20
    assert raised.group_contains(RewardError)
    assert report_error(raised.value) == RewardError.exit_code
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "of the last 64 judgements of http://127.0.0.1:" in said
    assert said.rstrip().endswith("the last reason: the endpoint answers with status 503: out of memory.")
