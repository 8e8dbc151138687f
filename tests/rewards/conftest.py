"""Fixtures of the rewards' tests."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import volley
from tests.rewards.boxed import descendants
from tests.rewards.scored import FUNCTIONS, OTHERS, children_of
from volley.rewards.sandbox import box
from volley.rewards.sandbox.box import Sandbox
from volley.rollout.errors import RewardError

SYSTEM_PYTHON = "/usr/bin/python3"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the reward functions in `scored`."""
    path = tmp_path_factory.mktemp("rewards") / "scorer_functions.py"
    path.write_text(FUNCTIONS)
    return path


@pytest.fixture(scope="module")
def others() -> None:
    """Let `children_of` leave out those that are there already."""
    OTHERS.update(children_of(os.getpid()))


@pytest.fixture(scope="module")
def started_sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """With the walls that a test names, else with those that this system prefers."""
    walls = getattr(request, "param", "")
    with pytest.MonkeyPatch.context() as patch:
        if walls:
            chosen = ways(walls)
            patch.setattr(box, "_commands", lambda: chosen)
        made = Sandbox()
        try:
            made.start()
            yield made
        except RewardError as error:
            pytest.skip(f"no sandbox on this system: {error}")
        finally:
            made.close()
            shutil.rmtree(copy_for_nobody(), ignore_errors=True)


def ways(walls: str) -> list[tuple[str, Callable[[int], list[str]]]]:
    """How a sandbox with these walls is started; bubblewrap's cannot hold root, who therefore becomes nobody first."""
    if walls == "bwrap" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    if walls == "namespaces" or os.geteuid() != 0:
        return [way for way in box._commands() if way[0] == walls]
    ask = (
        "import os, sys, sysconfig; print(sys.version_info >= (3, 11), os.path.realpath(sysconfig.get_path('stdlib')))"
    )
    answer = subprocess.run([SYSTEM_PYTHON, "-c", ask], capture_output=True, text=True).stdout.split()
    if answer[:1] != ["True"]:
        pytest.skip(f"root's own Python may be closed to nobody, and {SYSTEM_PYTHON} is not 3.11 or newer")
    place = copy_for_nobody()
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(
        Path(volley.__file__).parent / "rewards", place / "volley" / "rewards", ignore=ignored, dirs_exist_ok=True
    )
    shutil.copy(volley.__file__, place / "volley")
    place.chmod(0o755)
    become_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]

    commands = box._commands

    def command(descriptor: int) -> list[str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "executable", SYSTEM_PYTHON)
            patch.setattr(sys, "base_prefix", "/usr")
            patch.setattr(sysconfig, "get_path", lambda name: answer[1])
            patch.setattr(volley, "__file__", str(place / "volley" / "__init__.py"))
            return [*become_nobody, *dict(commands())[walls](descriptor)]

    return [(walls, command)]


def copy_for_nobody() -> Path:
    return Path("/tmp") / f"volley-walls-{os.getpid()}"


@pytest.fixture
def sandbox(started_sandbox: Sandbox) -> Iterator[Sandbox]:
    """After each test it holds its zygote and nothing else."""
    yield started_sandbox
    assert len(descendants(started_sandbox.pid)) <= 1
