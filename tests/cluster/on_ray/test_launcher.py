"""How the failure of a learner rank is reported; no Ray is started."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cluster.on_ray.test_placement import recipe
from volley.cluster.on_ray import launcher as launcher_module
from volley.cluster.on_ray.launcher import RayLauncher
from volley.rollout.errors import LostError


async def broken_collective(method: str) -> None:
    raise RuntimeError("Connection closed by peer")


def failure(dies: bool) -> BaseException:
    """The error of an update whose collective fails on one rank. If another rank dies, that is reported 50 ms later."""
    parts: Any = SimpleNamespace(recipe=recipe())
    rank = SimpleNamespace(call=SimpleNamespace(remote=broken_collective))

    async def update() -> None:
        launcher = RayLauncher(parts, lambda line: None)
        launcher._fatal = asyncio.get_running_loop().create_future()
        if dies:
            asyncio.get_running_loop().call_later(0.05, launcher._on_fatal, LostError("learner rank 1: died"))
        await launcher._call_rank("learner rank 0", rank, "update")

    with pytest.raises((RuntimeError, LostError)) as caught:
        asyncio.run(update())
    return caught.value


def test_death_of_a_rank_is_reported_instead_of_the_failed_collective() -> None:
    assert str(failure(dies=True)) == "learner rank 1: died"


def test_failed_collective_without_a_death_is_reported_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher_module, "DEATH_S", 0.1)
    assert str(failure(dies=False)) == "Connection closed by peer"
