"""Helpers for tests of whole runs: write a recipe, run `volley` as a user does, and read its output files."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from safetensors.torch import load_file

from tests.cluster.leftovers import ResourceTracker, title_of
from volley.rollout.data.parquet import read_groups

VOLLEY = str(Path(sys.executable).with_name("volley"))
STEPS = 25
WORKER, ENGINE, RANK = "ray::WorkerActor", "VLLM::EngineCore", "ray::RankActor"
SCORER = "ray::ScoringActor"
TIMINGS = {"wall_s", "samples_per_s", "peak_memory_bytes", "rollout_idle_share", "learner_idle_share", "push_seconds"}


def recipe(workspace: Path, name: str, **changes: Any) -> Path:
    """Write a small synchronous fp32 recipe. `changes` are merged into it by section."""
    content: dict[str, Any] = {
        "name": name,
        "model": "model",
        "steps": 6,
        "groups_per_step": 4,
        "seed": 7,
        "data": {"train": "data/train.jsonl", "test": "data/test.jsonl"},
        "rollout": {"group_size": 4, "max_tokens": 12, "max_replacements": 1, "enforce_eager": True},
        "rewards": [{"name": "rewards.py:digits"}],
        "loss": {"name": "grpo"},
        "learner": {"dtype": "fp32", "zero_stage": 1, "lr": 3e-3, "max_tokens_per_micro_batch": 256},
        "eval": {"max_prompts": 16},
    }
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(content.get(key), dict) else value
    (workspace / "rewards.py").write_text(
        "def digits(response, **row):\n"
        "    '''The share of digits among the characters.'''\n"
        "    return sum(c.isdigit() for c in response) / max(1, len(response))\n"
    )
    path = workspace / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def volley(
    workspace: Path, *arguments: str, timeout_s: float = 300, ok: bool = True
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [VOLLEY, *arguments],
        cwd=workspace,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    if ok:
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1"}


def rows(workspace: Path, name: str, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workspace / "runs" / name / file).read_text().splitlines()]


def without_timings(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in TIMINGS and not key.startswith("seconds/")}


def rounding(workspace: Path, name: str) -> str:
    newest = sorted((workspace / "runs" / name / "checkpoints").glob("step-*"))[-1]
    return str(json.loads((newest / "run.json").read_text())["rounding"])


def first_difference(workspace: Path, name: str, whole: str) -> str:
    """The first difference of two runs in metrics, evaluations or weights; "" if they are equal."""
    for file in ("metrics.jsonl", "evaluations.jsonl"):
        ours, theirs = rows(workspace, name, file), rows(workspace, whole, file)
        assert len(ours) == len(theirs)
        for a, b in zip(map(without_timings, ours), map(without_timings, theirs), strict=True):
            if a != b:
                different = {key: (a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)}
                return f"{file}, step {a['step']}: {different}"
    models = [load_file(workspace / "runs" / run / "model" / "model.safetensors") for run in (name, whole)]
    return next((f"weight {key}" for key in models[0] if not (models[0][key] == models[1][key]).all()), "")


def kill_after(workspace: Path, path: Path, name: str, num_steps: int, num_all: int, *flags: str) -> None:
    """Start a run and SIGKILL it as soon as its metrics contain `num_steps` steps."""
    process = subprocess.Popen(
        [VOLLEY, "train", str(path), *flags],
        cwd=workspace,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    metrics = workspace / "runs" / name / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.exists() and metrics.read_text().count("\n") >= num_steps):
        assert time.monotonic() < deadline
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(rows(workspace, name)) < num_all, "the run finished before it was killed"


class Run:
    """A running training on Ray, and its processes."""

    def __init__(
        self, workspace: Path, name: str, flags: tuple[str, ...] = (), around: tuple[str, ...] = (), **changes: Any
    ) -> None:
        """around: a command that starts the run, such as `nice`."""
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
        variables = changes.pop("env", {})
        for key, value in changes.items():
            base[key] = {**base[key], **value} if isinstance(base.get(key), dict) else value
        self.path = recipe(workspace, name, **base)
        self.log = workspace / f"{name}.log"
        self.resources = ResourceTracker(workspace)
        self.process = subprocess.Popen(
            [*around, VOLLEY, "train", str(self.path), *flags],
            cwd=workspace,
            env={**environment(), **self.resources.variables, **variables},
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
        )

    def steps(self) -> int:
        path = self.workspace / "runs" / self.name / "metrics.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    def wait_for(self, steps: int, timeout_s: float = 200) -> None:
        deadline = time.monotonic() + timeout_s
        while self.steps() < steps:
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.05)
        self.resources.update_all()

    def find(self, title: str) -> list[psutil.Process]:
        self.resources.update()
        return [p for p in self.resources.alive() if title_of(p).startswith(title)]

    def wait_for_log(self, pattern: str, times: int = 1, timeout_s: float = 200) -> None:
        """Wait until the log matches the pattern `times` times."""
        deadline = time.monotonic() + timeout_s
        while len(re.findall(pattern, self.log.read_text())) < times:
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            self.resources.update()
            time.sleep(0.2)

    def stop(self, timeout_s: float = 100) -> int:
        """Send SIGINT, which ends the run after the current step. Returns the exit code."""
        self.resources.update_all()
        self.process.send_signal(signal.SIGINT)
        return self.end(timeout_s)

    def end(self, timeout_s: float = 200) -> int:
        """Wait for the run to end. Returns the exit code."""
        deadline = time.monotonic() + timeout_s
        self.resources.update_all()
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                pytest.fail(f"the run hangs: {self.log.read_text()[-3000:]}")
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(3)
            self.resources.update_all()
        return int(self.process.returncode)

    def kill(self) -> None:
        """SIGKILL the driver."""
        self.resources.update_all()
        self.process.kill()
        self.process.wait()

    def assert_nothing_left(self) -> None:
        """Assert that no process, listening socket or shared memory is left, including those of late workers."""
        deadline = time.monotonic() + 60
        while left := self.resources.remaining():
            assert time.monotonic() < deadline, left
            time.sleep(0.5)

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


@contextmanager
def running(workspace: Path, name: str, *flags: str, around: tuple[str, ...] = (), **changes: Any) -> Iterator[Run]:
    run = Run(workspace, name, flags, around, **changes)
    try:
        yield run
    finally:
        run.resources.update()
        run.process.kill()
        for process in run.resources.processes.values():
            with suppress(psutil.Error):
                process.kill()
