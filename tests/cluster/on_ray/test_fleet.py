"""The fleet's places when `volley scale` asks and when workers fail for good; no Ray is started."""

import asyncio
import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
from test_ray_needs import recipe

from volley.cluster.on_ray import fleet as ray_fleet
from volley.cluster.on_ray.fleet import RayFleet, Slot
from volley.cluster.on_ray.placement import Needs
from volley.rollout.errors import LostError


class Group:
    """Of a placement group: its place is there at once, or never."""

    def __init__(self, has_room: bool) -> None:
        self._has_room = has_room

    async def ready(self) -> None:
        if not self._has_room:
            await asyncio.Event().wait()


class Fleet(RayFleet):
    """Workers join by standing in a list."""

    def __init__(self, room: int, workers: int) -> None:
        self.room, self.told, self.joined, self.given_up = room, [], [], []
        made = recipe(workers=workers, start_s=0.2, max_restarts=0)
        made = dataclasses.replace(made, rollout=dataclasses.replace(made.rollout, min_workers=1))
        needs = Needs(workers, 1, 1, 1, 0, 0)
        parts: Any = SimpleNamespace(recipe=made)
        super().__init__(parts, needs, "gloo", False, self.told.append, lambda: None, self.given_up.append)

    def _slot(self, index: int) -> Slot:
        group: Any = Group(index < self.room)
        return Slot(index, group)

    async def _join(self, slot: Slot) -> None:
        self.joined.append(slot.index)
        engine: Any = SimpleNamespace(lost=f"rollout worker {slot.index}: gone", lose=lambda reason: None)
        slot.engine = engine


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_fleet, "ROOM_S", 0.05)
    monkeypatch.setattr(ray_fleet, "remove_placement_group", lambda group: None)


async def settle(fleet: Fleet) -> None:
    while fleet._tasks:
        await asyncio.sleep(0.01)


def test_without_room_the_user_is_told_and_the_run_goes_on() -> None:
    async def run() -> Fleet:
        fleet = Fleet(room=2, workers=1)
        fleet._scale(3)
        await settle(fleet)
        return fleet

    fleet = asyncio.run(run())
    assert fleet.joined == [1]
    assert any("rollout worker 2 waits for 1 CPUs and 0 GPUs free on one node" in line for line in fleet.told)
    assert any("no room for rollout worker 2" in line for line in fleet.told)
    assert fleet.given_up == []


def test_scaling_down_while_a_place_is_awaited_is_no_loss() -> None:
    async def run() -> Fleet:
        fleet = Fleet(room=1, workers=1)
        fleet._scale(2)
        await asyncio.sleep(0)
        fleet._scale(1)
        await settle(fleet)
        return fleet

    fleet = asyncio.run(run())
    assert (fleet.joined, fleet.given_up) == ([], [])


def test_a_place_given_up_can_be_asked_for_again_and_too_few_end_the_run() -> None:
    async def run() -> Fleet:
        fleet = Fleet(room=9, workers=2)
        for slot in fleet._slots:
            await fleet._join(slot)
        await fleet._replace(fleet._slots[0])
        assert fleet.given_up == []
        fleet._scale(2)
        await settle(fleet)
        assert fleet.joined == [0, 1, 2]
        await fleet._replace(fleet._slots[1])
        assert fleet.given_up == []
        await fleet._replace(fleet._slots[2])
        return fleet

    fleet = asyncio.run(run())
    (error,) = fleet.given_up
    assert isinstance(error, LostError)
    assert "rollout worker 2: gone; it failed 1 times in a row" in str(error)
