"""Processes of a run on Ray are killed and frozen; the run goes on or ends, and leaves nothing behind."""

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from whole_run import ENGINE, RANK, WORKER, rows, running

pytestmark = pytest.mark.faults


@pytest.mark.parametrize(
    ("title", "number"),
    [(WORKER, signal.SIGKILL), (ENGINE, signal.SIGKILL), (ENGINE, signal.SIGSTOP)],
    ids=["worker killed", "engine killed", "engine frozen"],
)
def test_a_lost_rollout_worker_is_replaced_and_nothing_is_lost(
    workspace: Path, title: str, number: signal.Signals
) -> None:
    name = re.sub(r"\W", "", f"{title}{number.name}")
    with running(workspace, name) as run:
        run.wait_for(5)
        victims = run.find(title)
        assert len(victims) == 2
        os.kill(victims[0].pid, number)
        assert run.end() == 0, run.log.read_text()[-3000:]
        assert "lost: rollout worker" in run.log.read_text()
        run.assert_each_prompt_trained_once()
        assert rows(workspace, name)[-1]["rollout_restarts"] >= 1
        run.assert_nothing_left()


def test_all_rollout_workers_dead_and_the_run_goes_on(workspace: Path) -> None:
    with running(workspace, "all-dead") as run:
        run.wait_for(4)
        for victim in run.find(ENGINE):
            os.kill(victim.pid, signal.SIGKILL)
        assert run.end(300) == 0, run.log.read_text()[-3000:]
        run.assert_each_prompt_trained_once()
        assert rows(workspace, "all-dead")[-1]["rollout_restarts"] >= 2
        run.assert_nothing_left()


def test_a_lost_learner_rank_ends_the_job_and_resume_goes_on(workspace: Path) -> None:
    changes: dict[str, Any] = {"learner": {"ranks": 2}, "rollout": {"workers": 1}, "cluster": {"rank_cpus": 0.5}}
    with running(workspace, "rank-lost", **changes) as run:
        run.wait_for(7)
        victims = run.find(RANK)
        assert len(victims) == 2
        os.kill(victims[1].pid, signal.SIGKILL)
        assert run.end(60) == 1
        assert re.search(r"volley: learner rank [01]: died", run.log.read_text()), run.log.read_text()[-3000:]
        run.assert_nothing_left()
    with running(workspace, "rank-lost", "--resume", **changes) as run:
        assert run.end() == 0, run.log.read_text()[-3000:]
        run.assert_each_prompt_trained_once()


def test_a_killed_driver_leaves_nothing_behind_and_resume_goes_on(workspace: Path) -> None:
    with running(workspace, "driver-killed", rollout={"workers": 1}) as run:
        run.wait_for(7)
        run.look()
        run.process.kill()
        run.process.wait()
        run.assert_nothing_left()
    with running(workspace, "driver-killed", "--resume", rollout={"workers": 1}) as run:
        assert run.end() == 0, run.log.read_text()[-3000:]
        run.assert_each_prompt_trained_once()
