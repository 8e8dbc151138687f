"""What the failure of a learner rank is told as; no Ray is started."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from test_ray_needs import recipe

from volley.cluster.on_ray import launcher as ray_launcher
from volley.cluster.on_ray.launcher import RayLauncher
from volley.rollout.errors import LostError


async def broken_collective(method: str) -> None:
    raise RuntimeError("Connection closed by peer")


def failure(dies: bool) -> BaseException:
    """Of an update whose collective breaks on one rank, 50 ms before it is known that another died, if one did."""
    parts: Any = SimpleNamespace(recipe=recipe())
    rank = SimpleNamespace(call=SimpleNamespace(remote=broken_collective))

    async def update() -> None:
        launcher = RayLauncher(parts, lambda line: None)
        launcher._vital = asyncio.get_running_loop().create_future()
        if dies:
            asyncio.get_running_loop().call_later(0.05, launcher._give_up, LostError("learner rank 1: died"))
        await launcher._call_rank("learner rank 0", rank, "update")

    with pytest.raises((RuntimeError, LostError)) as caught:
        asyncio.run(update())
    return caught.value


def test_a_collective_that_breaks_with_a_rank_that_dies_is_its_death() -> None:
    assert str(failure(dies=True)) == "learner rank 1: died"


def test_a_collective_that_breaks_by_itself_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_launcher, "DEATH_S", 0.1)
    assert str(failure(dies=False)) == "Connection closed by peer"
