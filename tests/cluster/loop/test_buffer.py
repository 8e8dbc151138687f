"""The promises of the buffer: bounded age, oldest first, every prompt accounted for, nothing left running."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volley.cluster.loop.buffer import BufferConfig, GroupBuffer
from volley.rollout.types import Completion, Prompt, Score, ScoredGroup, as_token_ids


def prompt_at(ordinal: int) -> Prompt:
    return Prompt(ordinal, ordinal % 100, f"{ordinal}", as_token_ids((ordinal,)), "")


def group_of(prompt: Prompt, version: int, rewards: tuple[float, ...] = (0.0, 1.0)) -> ScoredGroup:
    completion = Completion.single((1,), (-1.0,), "x", "stop", version, version)
    return ScoredGroup(prompt, (completion,) * len(rewards), tuple(Score(r, {}) for r in rewards))


def reason_against(group: ScoredGroup) -> str:
    return "" if group.has_signal else "tied"


class World:
    """Rollouts of random length and random signal, and the weight version they start under."""

    def __init__(self, seed: int, share_without_signal: float = 0.0, straggler: float = 0.0) -> None:
        self._random = random.Random(seed)
        self._without = share_without_signal
        self._straggler = straggler
        self.version = 0
        self.running = 0

    async def roll(self, prompt: Prompt) -> ScoredGroup:
        version, self.running = self.version, self.running + 1
        try:
            slow = self._random.random() < self._straggler
            for _ in range(60 if slow else self._random.randrange(4)):
                await asyncio.sleep(0)
        finally:
            self.running -= 1
        return group_of(prompt, version, (1.0, 1.0) if self._random.random() < self._without else (0.0, 1.0))


async def drive(buffer: GroupBuffer, world: World, steps: int, per_step: int, check: Callable[..., None]) -> None:
    async with asyncio.TaskGroup() as tasks:
        buffer.start(tasks)
        for step in range(steps):
            groups = await buffer.take(per_step)
            check(step, groups)
            world.version = step + 1
            await buffer.release(per_step)
        buffer.stop()


def balanced(counts: dict[str, int]) -> bool:
    dropped = sum(number for name, number in counts.items() if name.startswith("dropped/"))
    return counts["issued"] == counts["trained"] + counts["queued"] + counts["in_flight"] + dropped


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    staleness=st.integers(0, 3),
    per_step=st.integers(1, 5),
    without=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_staleness_is_bounded_with_any_stragglers(seed: int, staleness: int, per_step: int, without: float) -> None:
    world = World(seed, without, straggler=0.1)
    buffer = GroupBuffer(prompt_at, world.roll, reason_against, BufferConfig(per_step, staleness, 2 * per_step))
    seen: list[int] = []

    def check(step: int, groups: list[ScoredGroup]) -> None:
        assert len(groups) == per_step
        assert all(0 <= world.version - group.first_version <= staleness for group in groups)
        counts = buffer.accounting()
        assert balanced(counts)
        assert counts["queued"] + counts["in_flight"] <= (staleness + 1) * per_step
        seen.extend(group.prompt.ordinal for group in groups)

    asyncio.run(drive(buffer, world, 12, per_step, check))
    assert len(set(seen)) == len(seen), "a prompt was trained on twice"
    assert world.running == 0


def test_groups_without_replacements_arrive_in_ticket_order() -> None:
    world = World(3, straggler=0.3)
    buffer = GroupBuffer(prompt_at, world.roll, lambda g: "", BufferConfig(4, 2, 0))
    order: list[int] = []
    asyncio.run(drive(buffer, world, 10, 4, lambda step, groups: order.extend(g.prompt.ordinal for g in groups)))
    assert order == list(range(40))


def test_synchronous_replacement_does_not_depend_on_timing() -> None:
    def ordinals(seed: int) -> list[int]:
        world = World(seed, straggler=0.5)  # other delays with every seed
        taken: list[int] = []

        async def roll(prompt: Prompt) -> ScoredGroup:
            await world.roll(prompt)
            return group_of(prompt, 0, (1.0, 1.0) if prompt.ordinal % 3 == 0 else (0.0, 1.0))

        buffer = GroupBuffer(prompt_at, roll, reason_against, BufferConfig(4, 0, 3))
        asyncio.run(drive(buffer, world, 8, 4, lambda step, groups: taken.extend(g.prompt.ordinal for g in groups)))
        return taken

    assert ordinals(1) == ordinals(2) == ordinals(3)


@pytest.mark.parametrize("staleness", [0, 2])
def test_each_step_reports_the_groups_that_were_replaced_by_reason(staleness: int) -> None:
    def why(group: ScoredGroup) -> str:
        return {0: "tied", 1: "unscorable"}.get(group.prompt.ordinal % 5, "")

    async def roll(prompt: Prompt) -> ScoredGroup:
        await asyncio.sleep(0)
        return group_of(prompt, 0)

    buffer = GroupBuffer(prompt_at, roll, why, BufferConfig(4, staleness, 20))
    reported: Counter[str] = Counter()

    def check(step: int, groups: list[ScoredGroup]) -> None:
        reported.update(buffer.replaced())
        dropped = {name.removeprefix("dropped/"): n for name, n in buffer.accounting().items() if "dropped/" in name}
        # Of those that are dropped those on the way to later steps are not reported yet.
        assert all(number <= dropped[reason] for reason, number in reported.items())
        assert staleness or reported == dropped
        assert not [group for group in groups if why(group)], "there were replacements enough"
        assert balanced(buffer.accounting())

    asyncio.run(drive(buffer, World(0), 6, 4, check))
    assert reported["tied"] > 0 < reported["unscorable"]


def test_a_run_continues_when_replacements_run_out() -> None:
    world = World(0, share_without_signal=1.0)
    buffer = GroupBuffer(prompt_at, world.roll, reason_against, BufferConfig(2, 0, 3))
    sizes: list[int] = []
    asyncio.run(drive(buffer, world, 3, 2, lambda step, groups: sizes.append(len(groups))))
    assert sizes == [2, 2, 2]
    assert buffer.accounting()["dropped/tied"] >= 9


@pytest.mark.parametrize("staleness", [0, 2])
def test_a_restored_buffer_neither_loses_nor_repeats_prompts(staleness: int) -> None:
    world = World(5, share_without_signal=0.2, straggler=0.2)
    buffer = GroupBuffer(prompt_at, world.roll, reason_against, BufferConfig(3, staleness, 6))
    trained: list[int] = []
    asyncio.run(drive(buffer, world, 5, 3, lambda step, groups: trained.extend(g.prompt.ordinal for g in groups)))
    saved = buffer.state()
    again = GroupBuffer(prompt_at, world.roll, reason_against, BufferConfig(3, staleness, 6))
    again.restore(saved)
    assert balanced(again.accounting())
    asyncio.run(drive(again, world, 5, 3, lambda step, groups: trained.extend(g.prompt.ordinal for g in groups)))
    counts = again.accounting()
    assert len(trained) == len(set(trained)) == counts["trained"] == 30
    assert balanced(counts)
    # What was issued is trained, dropped for want of signal, or waiting to be issued again: a whole range, no holes.
    assert set(trained) | set(again.state()["again"]) <= set(range(again.state()["next_ordinal"]))


def test_a_failing_rollout_cancels_everything() -> None:
    world = World(0)

    async def roll(prompt: Prompt) -> ScoredGroup:
        if prompt.ordinal == 7:
            raise RuntimeError("engine died")
        return await world.roll(prompt)

    buffer = GroupBuffer(prompt_at, roll, lambda g: "", BufferConfig(4, 1, 0))
    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(drive(buffer, world, 10, 4, lambda step, groups: None))
    assert "engine died" in str(caught.value.exceptions[0])
    assert world.running == 0


def test_a_stall_names_the_prompts_it_waits_for() -> None:
    async def never(prompt: Prompt) -> ScoredGroup:
        await asyncio.Event().wait()
        raise AssertionError

    buffer = GroupBuffer(prompt_at, never, lambda g: "", BufferConfig(2, 0, 0, stall_s=0.05))
    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(drive(buffer, World(0), 1, 2, lambda step, groups: None))
    assert "waiting for prompts [0, 1]" in str(caught.value.exceptions[0])
