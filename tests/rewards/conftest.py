"""Fixtures of the tests of rewards."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import volley
from tests.rewards.sandbox_helpers import descendants
from tests.rewards.scoring_helpers import FUNCTIONS, OTHERS, children_of
from volley.rewards.sandbox import box
from volley.rewards.sandbox.box import Sandbox
from volley.rollout.errors import RewardError

SYSTEM_PYTHON = "/usr/bin/python3"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the reward functions in `scoring_helpers`."""
    path = tmp_path_factory.mktemp("rewards") / "scorer_functions.py"
    path.write_text(FUNCTIONS)
    return path


@pytest.fixture(scope="module")
def others() -> None:
    """Make `children_of` ignore the processes that exist already."""
    OTHERS.update(children_of(os.getpid()))


@pytest.fixture(scope="module")
def started_sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A sandbox with the isolation that the test names, else with the preferred one of this system."""
    isolation = getattr(request, "param", "")
    with pytest.MonkeyPatch.context() as patch:
        if isolation:
            chosen = ways(isolation)
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


def ways(isolation: str) -> list[tuple[str, Callable[[int], list[str]]]]:
    """How to start a sandbox with this isolation. bubblewrap cannot isolate root, which becomes nobody first."""
    if isolation == "bwrap" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    if isolation == "namespaces" or os.geteuid() != 0:
        return [way for way in box._commands() if way[0] == isolation]
    ask = (
        "import os, sys, sysconfig; print(sys.version_info >= (3, 11), os.path.realpath(sysconfig.get_path('stdlib')))"
    )
    answer = subprocess.run([SYSTEM_PYTHON, "-c", ask], capture_output=True, text=True).stdout.split()
    if answer[:1] != ["True"]:
        pytest.skip(f"this Python may be readable by root only, and {SYSTEM_PYTHON} is not 3.11 or newer")
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
            return [*become_nobody, *dict(commands())[isolation](descriptor)]

    return [(isolation, command)]


def copy_for_nobody() -> Path:
    return Path("/tmp") / f"volley-isolation-{os.getpid()}"


@pytest.fixture
def sandbox(started_sandbox: Sandbox) -> Iterator[Sandbox]:
    """The sandbox; after each test nothing but its zygote is running."""
    yield started_sandbox
    assert len(descendants(started_sandbox.pid)) <= 1
