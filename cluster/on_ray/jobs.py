"""Runs as Ray jobs: submit a recipe, follow its log, show its status, scale it, stop it.

A job is `volley train RECIPE launcher=ray` on the cluster's head, in a copy of the working directory. The run directory
is below the submitting machine's `runs/` (or `--runs`), which must have the same path on the cluster.
"""

import asyncio
import contextlib
import logging
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from volley.cluster.on_ray.head import STOP_S
from volley.cluster.on_ray.probe import (
    BY_FLAG,
    BY_RECIPE,
    DASHBOARD,
    DASHBOARD_VARIABLE,
    check_cluster,
    check_dashboard,
    is_loopback,
    split_address,
)
from volley.cluster.on_ray.working_directory import SHADOWING_FILES
from volley.cluster.recipe.config import RUNS, RUNS_VARIABLE, Recipe
from volley.cluster.run.diagnose import diagnose, explain
from volley.cluster.storage.metrics import METRICS, read_rows
from volley.rollout.errors import ConfigError, LostError

READY_S = 60
"""How long a head that was just started may take until it accepts jobs."""
NOT_UPLOADED = ["runs", ".venv", ".git", "*.safetensors", "*.parquet", "__pycache__", *SHADOWING_FILES]
"""Patterns of files in the working directory that are not copied to the cluster. Ray's workers search the copy first,
so a package named volley in it would hide the installed one."""


def submit(recipe_path: str, recipe: Recipe, overrides: Sequence[str], runs: str, follow: bool) -> int:
    """Start the job; with `follow`, print its log until it ends and return its exit code."""
    client = connect(recipe.cluster.allow_unauthenticated, BY_RECIPE)
    directory = Path(runs or RUNS).resolve()
    if _jobs(client, recipe.name, only_running=True):
        raise ConfigError(
            f"a job of the run '{recipe.name}' is already running; wait for it, stop it with volley stop "
            f"{recipe.name}, or give this run another name (name=...)."
        )
    # -E and -P: do not search the copy of the working directory for packages.
    command = [
        "python",
        "-E",
        "-P",
        "-m",
        "volley",
        "train",
        recipe_path,
        *overrides,
        *_absolute_paths(recipe),
        "launcher=ray",
        "cluster.address=auto",
    ]
    job = _call_when_ready(
        client.submit_job,
        entrypoint="exec " + shlex.join([*command, "--auto-resume"]),
        submission_id=f"volley-{recipe.name}-{int(time.time())}",
        metadata={"volley_run": recipe.name},
        runtime_env={
            "working_dir": os.getcwd(),
            "excludes": NOT_UPLOADED,
            "env_vars": {
                RUNS_VARIABLE: str(directory),
                "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S),
                **_local_python(),
            },
        },
    )
    print(f"submitted {job}; see volley status|logs|stop {recipe.name}", flush=True)
    return follow_logs(client, job) if follow else 0


def status(run: str, allow_unauthenticated: bool = False) -> None:
    """Print the state and progress of the run's newest job."""
    job = _newest(connect(allow_unauthenticated), run)
    print(f"{job.submission_id}: {job.status}{f' ({job.message})' if job.message else ''}")
    rows = read_rows(RUNS / run / METRICS)
    if rows:
        last = rows[-1]
        shown = {"step": last["step"], "reward": last["reward_mean"], "accuracy": last.get("accuracy")}
        shown |= {"samples/s": last["samples_per_s"], "workers": last.get("rollout_workers")}
        print("  ".join(f"{name} {value:.4g}" for name, value in shown.items() if value is not None))
    found = diagnose(rows)
    for line in explain(found, 1, True) if found else ():
        print(line)


def logs(run: str, follow: bool, allow_unauthenticated: bool = False) -> int:
    """Print the log of the run's newest job."""
    client = connect(allow_unauthenticated)
    job = _newest(client, run)
    if follow:
        return follow_logs(client, job.submission_id)
    print(client.get_job_logs(job.submission_id), end="")
    return 0


def stop(run: str, allow_unauthenticated: bool = False) -> int:
    """Stop the run after its current step, with a checkpoint, and wait for that. Returns 1 if the job failed."""
    client = connect(allow_unauthenticated)
    job = _newest(client, run)
    if not client.stop_job(job.submission_id):
        print(f"{job.submission_id} has already ended: {job.status}")
        return _exit_code(job.status)
    print("stopping after the current step, with a checkpoint", flush=True)
    deadline = time.monotonic() + STOP_S + 10
    while time.monotonic() < deadline:
        state = client.get_job_status(job.submission_id)
        if state.is_terminal():
            print(f"{job.submission_id}: {state}")
            return _exit_code(state)
        time.sleep(0.5)
    raise LostError(f"volley stop: {job.submission_id} did not end within {STOP_S + 10} s")


def scale(run: str, workers: int, allow_unauthenticated: bool = False) -> None:
    """Change the number of a run's rollout workers; works on a machine of the cluster."""
    address = check_cluster("auto", allow_unauthenticated, BY_FLAG)
    import ray

    from volley.cluster.on_ray.actors import control_name
    from volley.cluster.on_ray.connection import NAMESPACE

    try:
        ray.init(address, namespace=NAMESPACE, logging_level="ERROR", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"volley scale: this machine cannot connect to a cluster ({' '.join(str(error).split())[:200]}); run the "
            "command on a machine of the cluster, or set RAY_ADDRESS."
        ) from None
    try:
        control = ray.get_actor(control_name(run))
    except ValueError:
        raise ConfigError(f"volley scale: no run '{run}' is training on the cluster.") from None
    ray.get(control.request.remote(workers))
    print(f"requested {workers} rollout workers for {run}; new workers join after a verified push")


def connect(allow_unauthenticated: bool = False, permit: str = BY_FLAG) -> Any:
    """A client of the jobs API. permit: see `check_cluster`. Raises `ConfigError`, quickly."""
    address = check_dashboard(allow_unauthenticated, permit)
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.WARNING)
    try:
        client = JobSubmissionClient(address)
        client.list_jobs()
    except Exception as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"the cluster at {address} does not answer as a Ray dashboard ({text[:300]}).") from None
    return client


def follow_logs(client: Any, job: str) -> int:
    """Print a job's log until it ends; 0 when it succeeded."""

    async def tail() -> None:
        async for text in client.tail_job_logs(job):
            print(text, end="", flush=True)

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(tail())
    state = client.get_job_status(job)
    print(f"{job}: {state}")
    return _exit_code(state)


def _exit_code(state: Any) -> int:
    return 0 if str(state) in ("SUCCEEDED", "RUNNING", "STOPPED") else 1


def _jobs(client: Any, run: str, only_running: bool = False) -> list[Any]:
    """The jobs of a run, newest first."""
    mine = [job for job in client.list_jobs() if (job.metadata or {}).get("volley_run") == run]
    if only_running:
        mine = [job for job in mine if not job.status.is_terminal()]
    return sorted(mine, key=lambda job: job.start_time or 0, reverse=True)


def _call_when_ready(call: Any, **arguments: Any) -> Any:
    """Call until it succeeds: a head that was just started answers some seconds before it accepts jobs."""
    deadline = time.monotonic() + READY_S
    while True:
        try:
            return call(**arguments)
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise LostError(
                    f"volley submit: the cluster did not accept the job ({' '.join(str(error).split())[:300]})"
                ) from None
            time.sleep(1)


def _newest(client: Any, run: str) -> Any:
    found = _jobs(client, run)
    if not found:
        raise ConfigError(f"the cluster has no job of the run '{run}'; start one with volley submit.")
    return found[0]


def _local_python() -> dict[str, str]:
    """Environment variables that make jobs on this machine's own cluster use this Python. On another cluster jobs use
    the Python there, which must have Volley installed."""
    host, _ = split_address(os.environ.get(DASHBOARD_VARIABLE, DASHBOARD))
    if not is_loopback(host):
        return {}
    return {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def _absolute_paths(recipe: Recipe) -> list[str]:
    """Overrides that make paths of local files absolute: the job runs in a copy of the working directory."""
    paths = {"model": recipe.model, "data.train": recipe.data.train, "data.test": recipe.data.test}
    return [
        f"{key}={Path(path).resolve()}"
        for key, path in paths.items()
        if path and not Path(path).is_absolute() and Path(path).exists()
    ]
