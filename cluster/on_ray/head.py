"""Start and stop a Ray head on this machine, with token authentication: `volley up` and `volley down`."""

import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

from volley.cluster.on_ray.token import TOKEN_FILE, write_token
from volley.rollout.errors import LostError

STOP_S = 120
"""How long a job that is stopped may take to finish its step and save; Ray's default would kill it after 3 s."""
GRAFANA_S = 10.0
"""How long to wait for the dashboards that the head itself writes after its start."""
GRAFANA = Path(__file__).resolve().parent / "grafana"


def up(port: int, dashboard_port: int, metrics_port: int, num_cpus: int | None) -> None:
    """Start a Ray head on this machine: token authentication on, dashboard on the loopback address.

    Ray's other ports listen on all interfaces whatever address is set, and require the token. The metrics port requires
    none, so on a machine that others can reach it belongs behind a firewall.
    """
    if not TOKEN_FILE.exists():
        write_token(TOKEN_FILE)
        print(f"wrote a new token to {TOKEN_FILE}")
    if stat.S_IMODE(TOKEN_FILE.stat().st_mode) & 0o077:
        TOKEN_FILE.chmod(0o600)
        print(f"{TOKEN_FILE} was readable by other users; its mode is now 0600")
    arguments = ["--head", "--node-ip-address=127.0.0.1", f"--port={port}", "--dashboard-host=127.0.0.1"]
    arguments += [f"--dashboard-port={dashboard_port}", "--include-dashboard=true", "--disable-usage-stats"]
    arguments.append(f"--metrics-export-port={metrics_port}")
    if num_cpus is not None:
        arguments.append(f"--num-cpus={num_cpus}")
    done = _ray("start", *arguments)
    if done.returncode:
        raise LostError(f"volley up: Ray did not start ({' '.join(done.stdout.split())[-400:]}).")
    print(f"Ray is running. Dashboard: http://127.0.0.1:{dashboard_port} (log in with the token in {TOKEN_FILE})")
    print(_install_grafana())
    print("Submit a run with volley submit RECIPE. Stop Ray with volley down.")


def down() -> None:
    """Stop the Ray processes of this machine."""
    _ray("stop", "--grace-period=10")
    print("Ray is stopped.")


def _install_grafana() -> str:
    """Copy our dashboard to Ray's own in the session's Grafana directory. Returns a line for the user."""
    from ray._common.utils import get_default_ray_temp_dir

    target = Path(get_default_ray_temp_dir()) / "session_latest" / "metrics" / "grafana" / "dashboards"
    # The head writes its dashboards shortly after it begins to answer.
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
