"""Whole runs as a user starts them, for the tests here: write a recipe, run `volley`, read what it left."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

VOLLEY = str(Path(sys.executable).with_name("volley"))
TIMES = {"wall_s", "samples_per_s", "peak_memory_bytes", "rollout_idle_share", "learner_idle_share"}


def recipe(workspace: Path, name: str, **changes: Any) -> Path:
    """A small synchronous fp32 recipe; `changes` are merged in by section."""
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


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in TIMES and not key.startswith("seconds/")}


def kill_after(workspace: Path, path: Path, name: str, num_steps: int, num_all: int, *flags: str) -> None:
    """Start a run and SIGKILL it as soon as `num_steps` steps stand in its metrics."""
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
    assert len(rows(workspace, name)) < num_all, "the run was over before the signal came"
