"""A run as a Ray job on a local head with token authentication: submit, watch, stop; and what is refused."""

import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from whole_run import VOLLEY, environment, recipe, rows

PORT, DASHBOARD_PORT, METRICS_PORT = 26379, 28265, 28080
DASHBOARD = f"http://127.0.0.1:{DASHBOARD_PORT}"


def volley(home: Path, cwd: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in environment().items() if not name.startswith("RAY_")}
    return subprocess.run(
        [VOLLEY, *arguments],
        cwd=cwd,
        env={**kept, "HOME": str(home), "RAY_API_SERVER_ADDRESS": DASHBOARD, **variables},
        capture_output=True,
        text=True,
        timeout=200,
    )


def other_addresses() -> list[str]:
    """This machine's addresses that others can reach."""
    every = [entry for entries in psutil.net_if_addrs().values() for entry in entries]
    return [each.address for each in every if each.family == socket.AF_INET and not each.address.startswith("127.")]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A head started by `volley up`, with a home directory of its own."""
    home = tmp_path_factory.mktemp("home")
    ports = ["--port", str(PORT), "--dashboard-port", str(DASHBOARD_PORT), "--metrics-port", str(METRICS_PORT)]
    up = volley(home, home, "up", *ports, "--num-cpus", "4")
    try:
        assert up.returncode == 0, up.stdout + up.stderr
        assert f"Dashboard: {DASHBOARD}" in up.stdout
        yield home
    finally:
        volley(home, home, "down")


def test_the_token_is_private_and_nothing_goes_without_it(head: Path) -> None:
    """Ray 2.60 listens on all interfaces, whatever address it is given; only its dashboard obeys."""
    assert stat.S_IMODE((head / ".ray" / "auth_token").stat().st_mode) == 0o600
    for address in other_addresses():
        with socket.socket() as probe:
            probe.settimeout(2)
            assert probe.connect_ex((address, DASHBOARD_PORT)) != 0, f"the dashboard answers at {address}"
    joining = f"import ray; ray.init('127.0.0.1:{PORT}', logging_level='ERROR'); print(ray.nodes())"
    kept = {name: value for name, value in environment().items() if not name.startswith("RAY_")}
    stranger = subprocess.run(
        [sys.executable, "-P", "-c", joining],
        env={**kept, "RAY_AUTH_MODE": "disabled", "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert stranger.returncode != 0
    assert "uthentication" in stranger.stderr, stranger.stderr[-2000:]


def test_a_submitted_run_is_watched_and_stopped_with_a_checkpoint(head: Path, workspace: Path) -> None:
    recipe(workspace, "job", steps=2000, max_staleness=1, cluster={"worker_cpus": 1, "rank_cpus": 1})
    submitted = volley(head, workspace, "submit", "job.yaml", "--no-follow")
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    again = volley(head, workspace, "submit", "job.yaml", "--no-follow")
    assert (again.returncode, "is running already" in again.stderr) == (2, True), again.stderr
    metrics = workspace / "runs" / "job" / "metrics.jsonl"
    deadline = time.monotonic() + 150
    while not (metrics.exists() and metrics.read_text().count("\n") >= 5):
        assert time.monotonic() < deadline, volley(head, workspace, "logs", "job").stdout[-3000:]
        time.sleep(0.5)
    status = volley(head, workspace, "status", "job")
    assert "RUNNING" in status.stdout
    assert re.search(r"step \d+", status.stdout)
    scaled = volley(head, workspace, "scale", "job", "rollouts=2", RAY_ADDRESS=f"127.0.0.1:{PORT}")
    assert scaled.returncode == 0, scaled.stdout + scaled.stderr
    deadline = time.monotonic() + 100
    while rows(workspace, "job")[-1]["rollout_workers"] != 2:
        assert time.monotonic() < deadline, volley(head, workspace, "logs", "job").stdout[-3000:]
        time.sleep(0.5)
    check_metrics(rows(workspace, "job")[-1])
    check_dashboard(head)
    started = time.monotonic()
    stopped = volley(head, workspace, "stop", "job")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert time.monotonic() - started < 60
    last = rows(workspace, "job")[-1]["step"]
    assert (workspace / "runs" / "job" / "checkpoints" / f"step-{last:06d}" / "manifest.json").exists()
    assert all(row["unscorable"] == 0 for row in rows(workspace, "job"))
    assert "with a checkpoint" in volley(head, workspace, "logs", "job").stdout


def check_metrics(row: dict[str, float]) -> None:
    """Our numbers stand at the metrics port, beside Ray's own and vLLM's."""
    deadline = time.monotonic() + 40
    wanted = [f"ray_volley_{name}" for name in ("reward_mean", "queued", "push_seconds", "accounting_residual")]
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{METRICS_PORT}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        missing = [name for name in wanted if f"{name}{{" not in text]
        if not missing:
            break
        assert time.monotonic() < deadline, missing
        time.sleep(1)
    assert 'run="job"' in text
    assert len(set(re.findall(r"^(ray_vllm_\w+)", text, re.MULTILINE))) > 20
    missing = [name for name in row if f"ray_volley_{re.sub('[^a-zA-Z0-9_]', '_', name)}{{" not in text]
    assert len(missing) <= 4, missing  # those that were never known, such as accuracy without a verifier


def check_dashboard(home: Path) -> None:
    """The jobs API knows the run, with its token and not without."""
    request = urllib.request.Request(f"{DASHBOARD}/api/jobs/")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=5)
    assert refused.value.code in (401, 403)
    request.add_header("Authorization", f"Bearer {(home / '.ray' / 'auth_token').read_text()}")
    with urllib.request.urlopen(request, timeout=5) as answer:
        jobs = json.loads(answer.read())
    assert any((job.get("metadata") or {}).get("volley_run") == "job" for job in jobs)


@pytest.mark.parametrize("token", ["", "wrong"], ids=["no token", "wrong token"])
def test_without_the_right_token_nothing_is_said_to_anybody(head: Path, tmp_path: Path, token: str) -> None:
    if token:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text(token)
    started = time.monotonic()
    refused = volley(tmp_path, tmp_path, "status", "job")
    assert refused.returncode == 2
    assert "does not take this machine's token" in refused.stderr
    assert time.monotonic() - started < 8


@pytest.mark.parametrize("token", ["", "0" * 64], ids=["no token", "wrong token"])
def test_a_run_without_the_right_token_is_told_so_at_once(
    head: Path, workspace: Path, tmp_path: Path, token: str
) -> None:
    """Ray itself tries for 20 seconds and then says that it failed to connect."""
    if token:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text(token)
    path = recipe(workspace, "stranger", launcher="ray", cluster={"address": f"127.0.0.1:{PORT}"})
    started = time.monotonic()
    done = volley(tmp_path, workspace, "train", str(path))
    assert time.monotonic() - started < 12  # most of it to read the data and import Ray
    assert done.returncode == 2
    assert "does not take this token" in done.stderr, done.stderr
    assert not (workspace / "runs" / "stranger").exists()


def test_other_versions_on_both_sides_are_named(head: Path, workspace: Path) -> None:
    path = recipe(workspace, "skewed", launcher="ray", cluster={"address": f"127.0.0.1:{PORT}"})
    newer = "import ray, sys; ray.__version__ = '9.9.9'; from cluster.cli import main; sys.exit(main(sys.argv[1:]))"
    kept = {name: value for name, value in environment().items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", newer, "train", str(path)],
        cwd=workspace,
        env={**kept, "HOME": str(head), "RAY_AUTH_MODE": "token"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 2
    assert "runs other versions than this client" in done.stderr
    assert "9.9.9" in done.stderr
    assert not (workspace / "runs" / "skewed").exists()


def test_more_than_the_cluster_has_is_refused_by_role(head: Path, workspace: Path) -> None:
    path = recipe(workspace, "greedy", launcher="ray", cluster={"address": f"127.0.0.1:{PORT}", "worker_cpus": 64})
    refused = volley(head, workspace, "train", str(path))
    assert refused.returncode == 2, refused.stderr
    assert (
        "the cluster has 4 CPUs, and the recipe needs 66: 1 rollout workers x 64 + 1 learner ranks x 2"
        in refused.stderr
    )
    refused = volley(head, workspace, "train", str(path), "cluster.worker_cpus=1", "transfer.backend=nccl")
    assert (refused.returncode, "the cluster has no GPU" in refused.stderr) == (2, True), refused.stderr
    assert not (workspace / "runs" / "greedy" / "metrics.jsonl").exists()


def test_nobody_at_the_address(tmp_path: Path) -> None:
    started = time.monotonic()
    refused = volley(tmp_path, tmp_path, "status", "job", RAY_API_SERVER_ADDRESS="http://127.0.0.1:9")
    assert (refused.returncode, "no Ray dashboard answers" in refused.stderr) == (2, True)
    assert time.monotonic() - started < 8


def test_an_open_cluster_elsewhere_is_refused_unless_it_is_named_as_such(tmp_path: Path) -> None:
    from cluster.ray_cluster import check_reachable
    from rollout.errors import ConfigError

    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        port = listener.getsockname()[1]
        if not other_addresses():
            pytest.skip("this machine has no address but its loopback address")
        address = other_addresses()[0]
        old = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("RAY_AUTH")}
        try:
            if (Path.home() / ".ray" / "auth_token").exists():
                pytest.skip("a token lies in the home directory")
            with pytest.raises(ConfigError, match="without one Ray runs anybody's code"):
                check_reachable(f"{address}:{port}", False)
            check_reachable(f"{address}:{port}", True)
        finally:
            os.environ.update(old)
    with pytest.raises(ConfigError, match="nothing answers"):
        check_reachable(f"127.0.0.1:{port}", True)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_the_dashboard_opens_in_a_browser(head: Path, tmp_path: Path) -> None:
    page = subprocess.run(
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--virtual-time-budget=8000",
            "--dump-dom",
            DASHBOARD,
        ],
        capture_output=True,
        text=True,
        timeout=90,
    ).stdout
    assert "Ray Dashboard" in page
