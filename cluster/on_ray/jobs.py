"""Runs as Ray jobs: start a safe local head, submit a recipe, follow, ask for status, stop.

A job is `volley train RECIPE launcher=ray` on the cluster's head, in a copy of the working directory; what the run
makes lies below the submitting machine's `runs/` (or `--runs`), which the cluster must see under the same path.
"""

import asyncio
import contextlib
import logging
import os
import shlex
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from volley.cluster.on_ray.token import TOKEN_FILE, write_token
from volley.cluster.recipe.config import RUNS, RUNS_VARIABLE, Recipe
from volley.cluster.run.diagnose import diagnose, explain
from volley.cluster.storage.metrics import METRICS, read_rows
from volley.rollout.errors import ConfigError, LostError

STOP_S = 120
"""How long a run that is told to stop may take to finish its step and save; Ray alone would kill it after 3 s."""
READY_S = 60
GRAFANA_S = 10.0
LEFT_BEHIND = ["runs", ".venv", ".git", "*.safetensors", "*.parquet", "__pycache__"]
GRAFANA = Path(__file__).resolve().parent / "grafana"


def up(port: int, dashboard_port: int, metrics_port: int, num_cpus: int | None) -> None:
    """Start a Ray head on this machine: token authentication on, dashboard on the loopback address.

    Ray's other ports listen on all interfaces, whatever it is told, and ask for the token; the metrics port does not,
    so where others can reach this machine it belongs behind a firewall.
    """
    if not TOKEN_FILE.exists():
        write_token(TOKEN_FILE)
        print(f"wrote a new token to {TOKEN_FILE}")
    if stat.S_IMODE(TOKEN_FILE.stat().st_mode) & 0o077:
        TOKEN_FILE.chmod(0o600)
        print(f"{TOKEN_FILE} was readable by others; its mode is 0600 now")
    arguments = ["--head", "--node-ip-address=127.0.0.1", f"--port={port}", "--dashboard-host=127.0.0.1"]
    arguments += [f"--dashboard-port={dashboard_port}", "--include-dashboard=true", "--disable-usage-stats"]
    arguments.append(f"--metrics-export-port={metrics_port}")
    if num_cpus is not None:
        arguments.append(f"--num-cpus={num_cpus}")
    done = _ray("start", *arguments)
    if done.returncode:
        raise LostError(f"volley up: Ray did not start ({' '.join(done.stdout.split())[-400:]}).")
    print(f"Ray is up. Dashboard: http://127.0.0.1:{dashboard_port} (it asks for the token in {TOKEN_FILE})")
    print(_install_grafana())
    print("submit a run with: volley submit RECIPE   end it all with: volley down")


def down() -> None:
    """Stop the Ray processes of this machine."""
    _ray("stop", "--grace-period=10")
    print("Ray is down")


def submit(recipe_path: str, recipe: Recipe, overrides: Sequence[str], runs: str, follow: bool) -> int:
    """Start the job; with `follow`, print its log until it ends and return its exit code."""
    client = connect(recipe.cluster.allow_unauthenticated, BY_RECIPE)
    directory = Path(runs or RUNS).resolve()
    if _jobs(client, recipe.name, only_running=True):
        raise ConfigError(
            f"a job of the run '{recipe.name}' is running already; wait for it, stop it with volley stop "
            f"{recipe.name}, or give this run another name (name=...)."
        )
    # Ray puts the working directory first on Python's path; a `rewards.py` there must not stand for our package.
    command = [
        "python",
        "-E",
        "-P",
        "-m",
        "volley",
        "train",
        recipe_path,
        *overrides,
        *_absolute(recipe),
        "launcher=ray",
        "cluster.address=auto",
    ]
    job = _patiently(
        client.submit_job,
        entrypoint="exec " + shlex.join([*command, "--auto-resume"]),
        submission_id=f"volley-{recipe.name}-{int(time.time())}",
        metadata={"volley_run": recipe.name},
        runtime_env={
            "working_dir": os.getcwd(),
            "excludes": LEFT_BEHIND,
            "env_vars": {
                RUNS_VARIABLE: str(directory),
                "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S),
                **_own_python(),
            },
        },
    )
    print(f"submitted {job}; volley status|logs|stop {recipe.name}", flush=True)
    return follow_logs(client, job) if follow else 0


def status(run: str, allow_unauthenticated: bool = False) -> None:
    """Print what the run's newest job does, and how far it is."""
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
    """Let the run finish its step and save a checkpoint, and wait for that. 1 when the job failed instead."""
    client = connect(allow_unauthenticated)
    job = _newest(client, run)
    if not client.stop_job(job.submission_id):
        print(f"{job.submission_id} had ended already: {job.status}")
        return _exit_code(job.status)
    print("stopping after this step, with a checkpoint", flush=True)
    deadline = time.monotonic() + STOP_S + 10
    while time.monotonic() < deadline:
        state = client.get_job_status(job.submission_id)
        if state.is_terminal():
            print(f"{job.submission_id}: {state}")
            return _exit_code(state)
        time.sleep(0.5)
    raise LostError(f"volley stop: {job.submission_id} did not end within {STOP_S + 10} s")


def scale(run: str, workers: int, allow_unauthenticated: bool = False) -> None:
    """Ask a run for so many rollout workers; from a machine of the cluster."""
    address = check_cluster("auto", allow_unauthenticated, BY_FLAG)
    import ray

    from volley.cluster.on_ray.actors import control_name
    from volley.cluster.on_ray.connection import NAMESPACE

    try:
        ray.init(address, namespace=NAMESPACE, logging_level="ERROR", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"volley scale: no cluster is reached from this machine ({' '.join(str(error).split())[:200]}); run it on "
            "one of the cluster's machines, or set RAY_ADDRESS."
        ) from None
    try:
        control = ray.get_actor(control_name(run))
    except ValueError:
        raise ConfigError(f"volley scale: the cluster has no run '{run}' that is training.") from None
    ray.get(control.ask.remote(workers))
    print(f"asked {run} for {workers} rollout workers; they join after a verified push")


def connect(allow_unauthenticated: bool = False, permit: str = BY_FLAG) -> Any:
    """A client of the jobs API. permit: see `check_cluster`. Raises `ConfigError` where Ray would try for long."""
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


def _patiently(call: Any, **arguments: Any) -> Any:
    """A head that has just started takes jobs some seconds later than it answers."""
    deadline = time.monotonic() + READY_S
    while True:
        try:
            return call(**arguments)
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise LostError(
                    f"volley submit: the cluster took no job ({' '.join(str(error).split())[:300]})"
                ) from None
            time.sleep(1)


def _newest(client: Any, run: str) -> Any:
    found = _jobs(client, run)
    if not found:
        raise ConfigError(f"the cluster knows no job of the run '{run}'; volley submit starts one.")
    return found[0]


def _own_python() -> dict[str, str]:
    """On a cluster of this machine jobs use this Python; elsewhere the cluster's own, which must have Volley."""
    host, _ = split_address(os.environ.get(DASHBOARD_VARIABLE, DASHBOARD))
    if not is_loopback(host):
        return {}
    return {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def _absolute(recipe: Recipe) -> list[str]:
    """Overrides that name local files by their whole path: the job runs in a copy of the working directory."""
    paths = {"model": recipe.model, "data.train": recipe.data.train, "data.test": recipe.data.test}
    return [
        f"{key}={Path(path).resolve()}"
        for key, path in paths.items()
        if path and not Path(path).is_absolute() and Path(path).exists()
    ]


def _install_grafana() -> str:
    """Put our dashboard beside Ray's own in the session's Grafana directory."""
    from ray._common.utils import get_default_ray_temp_dir

    target = Path(get_default_ray_temp_dir()) / "session_latest" / "metrics" / "grafana" / "dashboards"
    # The head writes its own a moment after it answers.
    deadline = time.monotonic() + GRAFANA_S
    while not any(target.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.2)
    if not GRAFANA.is_dir() or not target.is_dir():
        return f"Grafana: the dashboard is in {GRAFANA}"
    for dashboard in GRAFANA.glob("*.json"):
        shutil.copy(dashboard, target / f"volley_{dashboard.name}")
    return f"Grafana: dashboards installed in {target}"


def _ray(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", *arguments],
        env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
