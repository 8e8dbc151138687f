"""Fixtures of the rewards' tests."""

from collections.abc import Iterator

import pytest
from boxed import descendants

from rewards.sandbox.box import Sandbox
from rollout.errors import RewardError


@pytest.fixture(scope="module")
def started_sandbox() -> Iterator[Sandbox]:
    made = Sandbox()
    try:
        made.start()
    except RewardError as error:
        pytest.skip(f"no sandbox on this system: {error}")
    yield made
    made.close()


@pytest.fixture
def sandbox(started_sandbox: Sandbox) -> Iterator[Sandbox]:
    """After each test it holds its zygote and nothing else."""
    yield started_sandbox
    assert len(descendants(started_sandbox.pid)) <= 1
