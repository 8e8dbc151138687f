"""Scoring actors on a real private Ray cluster give the scores of local scoring processes, also when one is lost."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.whole_run import environment

ROOT = Path(__file__).resolve().parents[3]
REWARDS = """
import os, time

def own(response, extra, **row):
    if response == "hang":
        time.sleep(60)
    if response == "exit":
        os._exit(1)
    time.sleep(0.05)
    return extra / 10
"""


def compare(directory: Path, signal: str = "") -> dict[str, Any]:
    """The scores and messages of scoring_driver.py, run in the directory of the recipe and its rewards."""
    (directory / "rewards.py").write_text(REWARDS)
    content = {
        "name": "scoring",
        "model": "m",
        "steps": 1,
        "launcher": "ray",
        "data": {"train": "t.jsonl"},
        "rewards": ["math", {"name": "rewards.py:own", "weight": 0.5}],
        "scorer": {"workers": 2, "timeout_s": 2},
        "rollout": {"workers": 2},
        "cluster": {"stall_s": 4},
    }
    (directory / "recipe.yaml").write_text(yaml.safe_dump(content))
    done = subprocess.run(
        [sys.executable, "-m", "tests.cluster.on_ray.scoring_driver", "recipe.yaml", *([signal] if signal else [])],
        cwd=directory,
        env={**environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def check_scores(found: dict[str, Any]) -> None:
    # As text, because a missing value is NaN, which is not equal to itself.
    local, remote, again = ([json.dumps(score) for score in found[name]] for name in ("local", "remote", "again"))
    assert remote == local
    assert again == local
    assert "timed out" in found["remote"][17]["unscorable"]
    assert found["remote"][34]["unscorable"]
    assert len(set(local)) > 100


def test_actors_give_the_scores_of_local_processes(tmp_path: Path) -> None:
    found = compare(tmp_path)
    check_scores(found)
    assert found["lines"] == []


@pytest.mark.faults
@pytest.mark.parametrize("signal", ["KILL", "STOP"])
def test_items_of_a_lost_actor_are_scored_again(tmp_path: Path, signal: str) -> None:
    found = compare(tmp_path, signal)
    check_scores(found)
    assert any("lost: scoring actor" in line and "starting another" in line for line in found["lines"]), found["lines"]
