"""Processes of a run on Ray are killed and frozen; the run goes on or ends, and leaves nothing behind."""

import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from whole_run import VOLLEY, environment, recipe, rows

from rollout.arrow import read_groups

pytestmark = pytest.mark.faults
STEPS = 25
WORKER, ENGINE, RANK = "ray::WorkerActor", "VLLM::EngineCore", "ray::RankActor"


class Run:
    """A run under way, and its processes."""

    def __init__(self, workspace: Path, name: str, flags: tuple[str, ...] = (), **changes: Any) -> None:
        self.workspace, self.name = workspace, name
        base: dict[str, Any] = {
            "steps": STEPS,
            "max_staleness": 2,
            "save_every": 5,
            "launcher": "ray",
            "deadline_s": 120,
            "rollout": {"workers": 2, "max_replacements": 0, "max_tokens": 24},
            "cluster": {"worker_cpus": 0.5, "rank_cpus": 1, "stall_s": 8},
            "transfer": {"connect_s": 20, "transfer_s": 10, "commit_s": 20},
        }
        for key, value in changes.items():
            base[key] = {**base[key], **value} if isinstance(base.get(key), dict) else value
        self.path = recipe(workspace, name, **base)
        self.log = workspace / f"{name}.log"
        self.process = subprocess.Popen(
            [VOLLEY, "train", str(self.path), *flags],
            cwd=workspace,
            env=environment(),
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
        )
        self.family: dict[int, psutil.Process] = {}

    def steps(self) -> int:
        path = self.workspace / "runs" / self.name / "metrics.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    def wait_for(self, steps: int, timeout_s: float = 200) -> None:
        deadline = time.monotonic() + timeout_s
        while self.steps() < steps:
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            self.look()
            time.sleep(0.05)

    def look(self) -> None:
        """Remember every process that the run ever had."""
        if psutil.pid_exists(self.process.pid):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                self.family.setdefault(child.pid, child)

    def find(self, title: str) -> list[psutil.Process]:
        self.look()
        return [p for p in self.family.values() if p.is_running() and _title(p).startswith(title)]

    def end(self, timeout_s: float = 200) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it hangs: {self.log.read_text()[-3000:]}")

    def assert_nothing_left(self) -> None:
        deadline = time.monotonic() + 60
        while left := [p for p in self.family.values() if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]:
            assert time.monotonic() < deadline, [(p.pid, _title(p)) for p in left]
            time.sleep(0.2)

    def assert_each_prompt_trained_once(self, steps: int = STEPS) -> None:
        found = rows(self.workspace, self.name)
        assert [row["step"] for row in found] == list(range(1, steps + 1))
        assert all(row["accounting_residual"] == 0 for row in found)
        assert max(row["staleness_max"] for row in found) <= 2
        directory = self.workspace / "runs" / self.name / "rollouts"
        groups = [g for step in range(1, steps + 1) for g in read_groups(directory / f"step-{step:06d}.parquet")]
        counts = Counter(group.prompt.ordinal for group in groups)
        assert counts == Counter(range(4 * steps))
        assert all(len(group.completions) == 4 for group in groups)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextmanager
def running(workspace: Path, name: str, *flags: str, **changes: Any) -> Iterator[Run]:
    run = Run(workspace, name, flags, **changes)
    try:
        yield run
    finally:
        run.look()
        run.process.kill()
        for process in run.family.values():
            with suppress(psutil.Error):
                process.kill()


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
