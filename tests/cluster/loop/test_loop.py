"""The loop with a fake engine: the same code as a real run, without a model."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from volley.cluster.loop.buffer import BufferConfig, GroupBuffer
from volley.cluster.loop.dataset_source import DatasetSource
from volley.cluster.loop.interfaces import Evaluation, MetricSource, Step
from volley.cluster.loop.loop import LoopParts, train
from volley.cluster.loop.rollout import Rollout
from volley.cluster.recipe.config import Recipe, parse_recipe
from volley.learner.losses import LOSSES
from volley.learner.signals.advantages import Advantages
from volley.learner.signals.batch import Batch, Update, make_batch
from volley.rollout.engines.fake import FakeEngine
from volley.rollout.engines.pool import RolloutPool
from volley.rollout.types import Completion, Prompt, Sampling, Score, ScoredGroup, as_token_ids


class FakeLearner:
    """Counts steps and keeps the batches."""

    def __init__(self, fail_at: int = 0) -> None:
        self.step = 0
        self.batches: list[Batch] = []
        self.refreshed: list[int] = []
        self._fail_at = fail_at

    async def update(self, batch: Batch) -> Update:
        await asyncio.sleep(0.001)
        if self.step + 1 == self._fail_at:
            raise FloatingPointError("the loss is nan")
        self.step += 1
        self.batches.append(batch)
        return Update({"loss": 0.0})

    async def refresh_reference(self) -> None:
        self.refreshed.append(self.step)


class ParityScores:
    """Right when the number sampled is even."""

    async def score(self, prompt: Prompt, completion: Completion) -> Score:
        await asyncio.sleep(0)
        reward = float(completion.token_ids[0] % 2 == 0)
        return Score(reward, {"even": reward}, accuracy=reward)

    async def score_group(
        self, prompt: Prompt, completions: Sequence[Completion], scores: Sequence[Score]
    ) -> tuple[Score, ...]:
        return tuple(scores)

    def metrics(self) -> dict[str, float]:
        return {}


class KeptLog:
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.evaluations: list[tuple[int, Evaluation]] = []
        self.apart: list[float] = []
        self.sources: list[MetricSource] = []

    @asynccontextmanager
    async def phase(self, name: str) -> AsyncIterator[None]:
        yield

    @asynccontextmanager
    async def deadline(self, name: str) -> AsyncIterator[None]:
        yield

    async def step(self, done: Step) -> None:
        oldest = min(group.first_version for group in done.groups)
        staleness = done.trained - oldest
        self.rows.append(
            {
                "step": done.number,
                "staleness": staleness,
                "version": done.served,
                **{name: value for source in self.sources for name, value in source.metrics().items()},
            }
        )

    async def distinguishability(self, num_steps: int) -> float:
        assert self.rows[-1]["step"] % num_steps == 0
        return self.apart.pop(0)

    async def evaluation(self, step: int, result: Evaluation) -> None:
        self.evaluations.append((step, result))


class World:
    """Everything around one call of `train`."""

    def __init__(self, engine: FakeEngine | None = None, learner: FakeLearner | None = None, **recipe: Any) -> None:
        base = {"name": "t", "model": "m", "data": {"train": "t", "test": "t"}, "steps": 10, "groups_per_step": 4}
        self.recipe: Recipe = parse_recipe({**base, "rollout": {"group_size": 4}, **recipe})
        self.engine = engine or FakeEngine(
            lambda ids, number: ([number % 7, 1], str(number % 7)), lambda number: number % 5 * 0.0004
        )
        self.pool = RolloutPool([self.engine])
        self.learner = learner or FakeLearner()
        self.log = KeptLog()
        self.stop = asyncio.Event()
        self.saved: list[int] = []
        self.pass_at_1 = 0.0
        rollout, sampling = Rollout(self.pool, ParityScores(), 0), Sampling(4)
        self.source = GroupBuffer(
            lambda ordinal: Prompt(ordinal, ordinal, "", as_token_ids((ordinal,)), ""),
            lambda prompt: rollout(prompt, sampling),
            lambda group: "" if group.has_signal else "tied",
            BufferConfig(self.recipe.groups_per_step, self.recipe.max_staleness, 2 * self.recipe.groups_per_step),
        )

    @property
    def version(self) -> int:
        return self.engine.version

    async def publish(self, groups: Sequence[ScoredGroup]) -> None:
        await self.engine.load_weights([("w", len(groups))], self.engine.version + 1)

    async def evaluate(self) -> Evaluation:
        return Evaluation({"pass@1": self.pass_at_1}, ())

    async def save(self, step: int) -> None:
        self.saved.append(step)

    def run(self) -> None:
        async def everything() -> None:
            self.log.sources = [self.source]
            parts = LoopParts(self.source, LOSSES["grpo"](), self.learner, self, self, self, self.log)
            await train(self.recipe, parts, self.stop)
            left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            assert not left, f"still running: {left}"

        asyncio.run(everything())


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_every_step_is_accounted_for_and_no_sample_is_too_old(staleness: int) -> None:
    world = World(max_staleness=staleness, steps=15)
    world.run()
    assert [row["step"] for row in world.log.rows] == list(range(1, 16))
    for row in world.log.rows:
        assert row["staleness"] <= staleness
        dropped = sum(number for name, number in row.items() if name.startswith("dropped/"))
        assert row["issued"] == row["trained"] + row["queued"] + row["in_flight"] + dropped
    assert world.log.rows[-1]["trained"] == 15 * 4
    assert world.log.rows[-1]["version"] == world.engine.version == 15


def test_synchronous_runs_are_reproducible() -> None:
    def signals() -> list[tuple[float, ...]]:
        world = World(steps=6)
        world.run()
        found = []
        for batch in world.learner.batches:
            assert isinstance(batch.signal, Advantages)
            found.append(tuple(batch.signal.values.tolist()))
        return found

    assert signals() == signals()


def test_synchronous_training_equals_taking_turns_by_hand() -> None:
    """`max_staleness: 0` against sampling, learning and pushing one after the other, with neither buffer nor loop."""
    world, steps, loss = World(steps=12), 12, LOSSES["grpo"]()
    world.run()
    hand = World(steps=12)
    rollout, batches = Rollout(hand.pool, ParityScores(), 0), list[Batch]()

    async def roll(ordinals: Sequence[int]) -> list[ScoredGroup]:
        prompts = [Prompt(ordinal, ordinal, "", as_token_ids((ordinal,)), "") for ordinal in ordinals]
        return list(await asyncio.gather(*(rollout(prompt, Sampling(4)) for prompt in prompts)))

    async def take_turns() -> None:
        ordinals = iter(range(1000))
        for step in range(steps):
            groups, left = await roll(list(itertools.islice(ordinals, 4))), 8
            while left and (flat := [i for i, group in enumerate(groups) if not group.has_signal][:left]):
                left -= len(flat)
                for i, group in zip(flat, await roll(list(itertools.islice(ordinals, len(flat)))), strict=True):
                    groups[i] = group
            batches.append(make_batch(groups, loss, step))
            await hand.publish(groups)

    asyncio.run(take_turns())
    assert world.log.rows[-1]["dropped/tied"] > 0
    assert world.learner.batches == batches


def test_iterative_training_pushes_every_n_steps() -> None:
    world = World(publish_every=3, steps=10)
    world.run()
    assert world.engine.version == 3
    assert [row["version"] for row in world.log.rows] == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3]


def test_the_reference_is_refreshed_every_n_steps() -> None:
    world = World(steps=7, reference={"refresh_every": 3})
    world.run()
    assert world.learner.refreshed == [3, 6]


def test_an_indistinguishable_round_ends_the_run_with_a_checkpoint() -> None:
    world = World(steps=12, reference={"refresh_every": 3}, stop_at={"indistinguishable": 0.55})
    world.log.apart = [0.9, 0.54, 0.9]
    world.run()
    assert world.learner.step == 6
    assert world.saved == [6]
    assert world.log.apart == [0.9]


def test_evaluations_and_checkpoints_follow_their_intervals() -> None:
    world = World(eval_every=4, save_every=5, steps=12)
    world.run()
    assert [step for step, _ in world.log.evaluations] == [4, 8, 12]
    assert world.saved == [5, 10, 12]


def test_a_reached_target_ends_the_run_with_a_checkpoint() -> None:
    world = World(eval_every=2, stop_at={"pass_at_1": 0.9})
    world.pass_at_1 = 0.95
    world.run()
    assert world.learner.step == 2
    assert world.saved == [2]


def test_a_stop_ends_the_run_even_while_it_waits() -> None:
    def never(number: int) -> float:
        asyncio.get_running_loop().call_later(0.01, world.stop.set)
        return 3600.0

    world = World(FakeEngine(lambda ids, number: ([number % 7, 1], ""), never))
    world.run()
    assert world.engine.version == world.learner.step == 0
    assert world.saved == []


def test_a_stop_ends_a_run_that_never_waits_with_a_checkpoint() -> None:
    """A data set hands its groups out at once."""

    class Shown:
        def group_at(self, ordinal: int, version: int) -> ScoredGroup:
            completion = Completion.single((1,), (0.0,), "", "stop", version, version)
            scores = (Score(1.0, {}), Score(0.0, {}))
            return ScoredGroup(
                Prompt(ordinal, ordinal, "", as_token_ids((ordinal,)), ""), (completion, completion), scores
            )

    class Stopping(FakeLearner):
        async def update(self, batch: Batch) -> Update:
            if self.step == 2:
                world.stop.set()
            return await super().update(batch)

    world = World(learner=Stopping(), steps=1000)
    world.source = DatasetSource(Shown(), lambda: world.engine.version)  # type: ignore[assignment, arg-type]
    world.run()
    assert world.learner.step == 3
    assert world.saved == [3]
    assert world.log.rows[-1]["trained"] == 12


@pytest.mark.parametrize("staleness", [0, 2])
def test_a_dead_engine_ends_the_run_and_leaves_nothing_running(staleness: int) -> None:
    engine = FakeEngine(lambda ids, number: ([number % 7, 1], ""), lambda number: 0.001, fail_at=23)
    world = World(engine, max_staleness=staleness)
    with pytest.raises(ExceptionGroup) as caught:
        world.run()
    assert "failed at request 23" in str(caught.value.exceptions[0])


def test_a_failing_update_ends_the_run_and_leaves_nothing_running() -> None:
    world = World(learner=FakeLearner(fail_at=3), max_staleness=1)
    with pytest.raises(ExceptionGroup) as caught:
        world.run()
    assert isinstance(caught.value.exceptions[0], FloatingPointError)
    assert world.learner.step == 2
