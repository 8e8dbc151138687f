"""The fleet's slots during `volley scale` and after repeated failures; no Ray is started."""

import asyncio
import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cluster.on_ray.test_placement import recipe
from volley.cluster.on_ray import fleet as fleet_module
from volley.cluster.on_ray.fleet import FleetCallbacks, RayFleet, Slot
from volley.cluster.on_ray.placement import ResourcePlan
from volley.rollout.errors import LostError


class Group:
    """Test double of a placement group: ready at once, or never."""

    def __init__(self, has_room: bool) -> None:
        self._has_room = has_room

    async def ready(self) -> None:
        if not self._has_room:
            await asyncio.Event().wait()


class Fleet(RayFleet):
    """Workers that join are only recorded."""

    def __init__(self, room: int, workers: int) -> None:
        self.room, self.lines, self.joined, self.errors = room, [], [], []
        made = recipe(workers=workers, start_s=0.2, max_restarts=0)
        made = dataclasses.replace(made, rollout=dataclasses.replace(made.rollout, min_workers=1))
        spec: Any = SimpleNamespace(recipe=made)
        callbacks = FleetCallbacks(self.lines.append, lambda: None, self.errors.append)
        super().__init__(spec, ResourcePlan(workers, 1, 1, 1, 0, 0), callbacks)

    def _slot(self, index: int) -> Slot:
        group: Any = Group(index < self.room)
        return Slot(index, group)

    async def _join(self, slot: Slot) -> None:
        self.joined.append(slot.index)
        engine: Any = SimpleNamespace(lost=f"rollout worker {slot.index}: gone", lose=lambda reason: None)
        slot.engine = engine


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "NOTIFY_WAITING_S", 0.05)
    monkeypatch.setattr(fleet_module, "remove_placement_group", lambda group: None)


async def settle(fleet: Fleet) -> None:
    while fleet._tasks:
        await asyncio.sleep(0.01)


def test_missing_resources_are_reported_and_the_run_continues() -> None:
    async def run() -> Fleet:
        fleet = Fleet(room=2, workers=1)
        fleet._scale(3)
        await settle(fleet)
        return fleet

    fleet = asyncio.run(run())
    assert fleet.joined == [1]
    assert any("rollout worker 2 waits for 1 CPUs and 0 GPUs free on one node" in line for line in fleet.lines)
    assert any("no room for rollout worker 2" in line for line in fleet.lines)
    assert fleet.errors == []


def test_scaling_down_a_waiting_slot_is_not_a_loss() -> None:
    async def run() -> Fleet:
        fleet = Fleet(room=1, workers=1)
        fleet._scale(2)
        await asyncio.sleep(0)
        fleet._scale(1)
        await settle(fleet)
        return fleet

    fleet = asyncio.run(run())
    assert (fleet.joined, fleet.errors) == ([], [])


def test_retired_slot_can_be_replaced_by_scaling_and_too_few_workers_end_the_run() -> None:
    async def run() -> Fleet:
        fleet = Fleet(room=9, workers=2)
        for slot in fleet._slots:
            await fleet._join(slot)
        await fleet._replace(fleet._slots[0])
        assert fleet.errors == []
        fleet._scale(2)
        await settle(fleet)
        assert fleet.joined == [0, 1, 2]
        await fleet._replace(fleet._slots[1])
        assert fleet.errors == []
        await fleet._replace(fleet._slots[2])
        return fleet

    fleet = asyncio.run(run())
    (error,) = fleet.errors
    assert isinstance(error, LostError)
    assert "rollout worker 2: gone; it failed 1 times in a row" in str(error)
