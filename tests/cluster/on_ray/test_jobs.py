"""A run as a Ray job on a local head with token authentication: submit, watch, stop, and refused requests."""

import asyncio
import json
import re
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from ray._common.utils import get_default_ray_temp_dir

from tests.cluster.browser import CHROMIUM, browser
from tests.cluster.leftovers import ResourceTracker, title_of
from tests.cluster.whole_run import ENGINE, RANK, VOLLEY, WORKER, environment, recipe, rows
from volley.cluster.on_ray import probe
from volley.rollout.errors import ConfigError

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
    """This machine's addresses that other machines can reach."""
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
        (installed,) = re.findall(r"Grafana: dashboards installed in (\S+)", up.stdout)
        ours = json.loads((Path(installed) / "volley_volley.json").read_text())
        assert (ours["uid"], "ray_volley_" in json.dumps(ours)) == ("volley", True)
        yield home
    finally:
        volley(home, home, "down")


OPEN_PORT, OPEN_DASHBOARD_PORT = 26380, 28266


@pytest.fixture(scope="module")
def open_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a head with Ray's defaults, which other machines can reach and which has no authentication."""
    if not other_addresses():
        pytest.skip("this machine has only its loopback address")
    address, home = other_addresses()[0], tmp_path_factory.mktemp("open")
    ports = [f"--port={OPEN_PORT}", f"--dashboard-port={OPEN_DASHBOARD_PORT}", f"--dashboard-host={address}"]
    ports += ["--ray-client-server-port=26381", "--dashboard-agent-listen-port=28267"]
    sizes = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats", "--include-dashboard=true"]
    kept = {name: value for name, value in environment().items() if not name.startswith("RAY_")}
    log = home / "log"
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--node-ip-address={address}"]
        + ports
        + sizes,
        env={**kept, "HOME": str(home), "RAY_AUTH_MODE": "disabled"},
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
    )
    try:
        deadline = time.monotonic() + 90
        for port in (OPEN_PORT, OPEN_DASHBOARD_PORT):
            while socket.socket().connect_ex((address, port)):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
        yield address
    finally:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for each in family:
            each.kill()
        process.wait()


def test_token_file_is_private_and_required(head: Path) -> None:
    """Ray 2.60 listens on all interfaces whatever address is set, except for its dashboard."""
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


def test_submitted_run_is_watched_and_stopped_with_a_checkpoint(head: Path, workspace: Path, tmp_path: Path) -> None:
    recipe(workspace, "job", steps=2000, max_staleness=1, cluster={"worker_cpus": 1, "rank_cpus": 1})
    with packages_of_the_user(workspace):
        submitted = volley(head, workspace, "submit", "job.yaml", "--no-follow")
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    again = volley(head, workspace, "submit", "job.yaml", "--no-follow")
    assert (again.returncode, "is already running" in again.stderr) == (2, True), again.stderr
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
    if CHROMIUM:
        (job,) = re.findall(r"submitted (\S+);", submitted.stdout)
        asyncio.run(look_at_dashboard(head, tmp_path, job))
    # Jobs run in copies of their directory, below the directory of the head's session.
    resources = ResourceTracker(Path(get_default_ray_temp_dir()) / "session_latest")
    assert all(of_run(resources, kind) for kind in (WORKER, ENGINE, RANK))
    started = time.monotonic()
    stopped = volley(head, workspace, "stop", "job")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert time.monotonic() - started < 60
    deadline = time.monotonic() + 60
    while left := of_run(resources, WORKER, ENGINE, RANK):
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
    last = rows(workspace, "job")[-1]["step"]
    assert (workspace / "runs" / "job" / "checkpoints" / f"step-{last:06d}" / "manifest.json").exists()
    assert all(row["unscorable"] == 0 for row in rows(workspace, "job"))
    assert "with a checkpoint" in volley(head, workspace, "logs", "job").stdout
    followed = volley(head, workspace, "logs", "job", "--follow")
    assert followed.returncode == 0, followed.stderr
    assert followed.stdout.index("stopped at step") < followed.stdout.index(": STOPPED")
    if not CHROMIUM:
        pytest.skip("everything but the dashboard check passed: no chromium on this machine")


@contextmanager
def packages_of_the_user(directory: Path) -> Iterator[None]:
    """Modules in the working directory that are named like Volley and its parts; next to them `recipe` has put a
    rewards.py. Neither the driver nor the actors of a job may import them."""
    files = [directory / "volley" / "__init__.py", directory / "volley.py", directory / "cluster.py"]
    files[0].parent.mkdir()
    for file in files:
        file.write_text("raise ImportError('a module of the user')\n")
    try:
        yield
    finally:
        for file in files:
            file.unlink()
        files[0].parent.rmdir()


@pytest.mark.faults
def test_ray_job_stop_lets_the_run_save(head: Path, workspace: Path) -> None:
    """Ray's own command sends SIGTERM, and by default SIGKILL after 3 s."""
    recipe(workspace, "stopped", steps=2000, max_staleness=1, cluster={"worker_cpus": 1, "rank_cpus": 1})
    submitted = volley(head, workspace, "submit", "stopped.yaml", "--no-follow")
    (job,) = re.findall(r"submitted (\S+);", submitted.stdout)
    metrics = workspace / "runs" / "stopped" / "metrics.jsonl"
    deadline = time.monotonic() + 150
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert time.monotonic() < deadline, volley(head, workspace, "logs", "stopped").stdout[-3000:]
        time.sleep(0.5)
    kept = {name: value for name, value in environment().items() if not name.startswith("RAY_")}
    ray = str(Path(sys.executable).with_name("ray"))
    done = subprocess.run(
        [ray, "job", "stop", f"--address={DASHBOARD}", job],
        env={**kept, "HOME": str(head), "RAY_AUTH_MODE": "token"},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    last = rows(workspace, "stopped")[-1]["step"]
    assert (workspace / "runs" / "stopped" / "checkpoints" / f"step-{last:06d}" / "manifest.json").exists()
    assert f"stopped at step {last} with a checkpoint" in volley(head, workspace, "logs", "stopped").stdout


async def look_at_dashboard(home: Path, directory: Path, job: str) -> None:
    """Open Ray's dashboard with the token while the job runs."""
    token = (home / ".ray" / "auth_token").read_text()
    async with browser(directory / "profile") as page:
        await page.send("Network.setCookie", name="ray-authentication-token", value=token, url=DASHBOARD)
        await page.send("Page.navigate", url=f"{DASHBOARD}/#/jobs")
        await page.wait_for_text((job, "RUNNING"))
        await page.screenshot(directory / "jobs.png")
        await page.send("Page.navigate", url=f"{DASHBOARD}/#/actors")
        await page.wait_for_text(("job:learner-0", "job:rollout-0.0", "job:rollout-1.0", "ALIVE"))
        await page.screenshot(directory / "actors.png")


def of_run(resources: ResourceTracker, *kinds: str) -> list[str]:
    """The run's live processes of these kinds."""
    resources.update()
    return [title_of(each) for each in resources.alive() if title_of(each).startswith(kinds)]


NAMES = (
    *("step", "weight_version", "loss", "reward_mean", "entropy", "grad_norm", "lr", "samples_per_s"),
    *("queued", "in_flight", "issued", "trained", "accounting_residual", "samples_in_flight", "samples_waiting"),
    *("staleness_max", "rollout_idle_share", "learner_idle_share"),
    *("seconds/generate", "seconds/score", "seconds/wait", "seconds/update", "seconds/publish"),
    *("push_seconds", "push_bytes", "push_attempts", "rollout_workers", "rollout_restarts", "samples_resent"),
)
"""Metrics that users' dashboards rely on."""


def check_metrics(row: dict[str, float | None]) -> None:
    """The metrics port serves all metrics of the row, Ray's own and vLLM's."""
    deadline = time.monotonic() + 40
    known = [name for name, value in row.items() if value is not None]
    wanted = [f"ray_volley_{re.sub('[^a-zA-Z0-9_]', '_', name)}" for name in {*NAMES, *known}]
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


def check_dashboard(home: Path) -> None:
    """The jobs API lists the run, and only with the token."""
    request = urllib.request.Request(f"{DASHBOARD}/api/jobs/")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=5)
    assert refused.value.code in (401, 403)
    request.add_header("Authorization", f"Bearer {(home / '.ray' / 'auth_token').read_text()}")
    with urllib.request.urlopen(request, timeout=5) as answer:
        jobs = json.loads(answer.read())
    assert any((job.get("metadata") or {}).get("volley_run") == "job" for job in jobs)


@pytest.mark.parametrize("token", ["", "0" * 64], ids=["no token", "wrong token"])
def test_every_command_refuses_a_wrong_token_quickly(
    head: Path, workspace: Path, tmp_path: Path, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself tries for 20 seconds and then only reports that it cannot connect. Volley refuses before it imports
    anything heavy, even Ray."""
    if token:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text(token)
    gcs = f"127.0.0.1:{PORT}"
    path = recipe(workspace, "stranger", launcher="ray", cluster={"address": gcs})
    for arguments, variables in (
        (("train", str(path)), {}),
        (("train", str(path), "cluster.address=auto"), {"RAY_ADDRESS": gcs}),
        (("scale", "job", "rollouts=2"), {"RAY_ADDRESS": gcs}),
        (("status", "job"), {}),
        (("submit", str(path)), {}),
    ):
        started = time.monotonic()
        refused = volley(tmp_path, workspace, *arguments, **variables, PYTHONPROFILEIMPORTTIME="1")
        print(f"volley {arguments[0]}: refused after {time.monotonic() - started:.1f} s")
        assert refused.returncode == 2, refused.stderr[-2000:]
        assert "does not accept this machine's token" in refused.stderr
        heavy = re.findall(r"\| +(ray|torch|transformers|vllm)$", refused.stderr, re.MULTILINE)
        assert not heavy, (arguments, heavy)
    assert not (workspace / "runs" / "stranger").exists()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    monkeypatch.setenv(probe.DASHBOARD_VARIABLE, DASHBOARD)
    for check in (lambda: probe.check_cluster(gcs, True), lambda: probe.check_dashboard(True, "")):
        started = time.monotonic()
        with pytest.raises(ConfigError, match="does not accept this machine's token"):
            check()
        assert time.monotonic() - started < 3


def test_different_versions_are_named(head: Path, workspace: Path) -> None:
    path = recipe(workspace, "skewed", launcher="ray", cluster={"address": f"127.0.0.1:{PORT}"})
    newer = "import ray, sys; ray.__version__ = '9.9.9'; "
    newer += "from volley.cluster.cli.main import main; sys.exit(main(sys.argv[1:]))"
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
    assert "runs different versions than this client" in done.stderr
    assert "9.9.9" in done.stderr
    assert not (workspace / "runs" / "skewed").exists()


def test_recipe_larger_than_the_cluster_is_refused(head: Path, workspace: Path) -> None:
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


def test_no_cluster_at_the_address(tmp_path: Path) -> None:
    started = time.monotonic()
    refused = volley(tmp_path, tmp_path, "status", "job", RAY_API_SERVER_ADDRESS="http://127.0.0.1:9")
    assert (refused.returncode, "no Ray dashboard answers" in refused.stderr) == (2, True)
    assert time.monotonic() - started < 8


def test_open_remote_cluster_is_refused_unless_allowed(
    head: Path, open_head: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for a user with a token, because an open cluster accepts any."""
    gcs, dashboard = f"{open_head}:{OPEN_PORT}", f"http://{open_head}:{OPEN_DASHBOARD_PORT}"
    path = recipe(workspace, "open", launcher="ray", cluster={"address": gcs})
    for arguments, variables, permit in (
        (("train", str(path)), {}, "cluster.allow_unauthenticated: true"),
        (("train", str(path), "cluster.address=auto"), {"RAY_ADDRESS": gcs}, "cluster.allow_unauthenticated: true"),
        (("submit", str(path)), {"RAY_API_SERVER_ADDRESS": dashboard}, "cluster.allow_unauthenticated: true"),
        (("status", "open"), {"RAY_API_SERVER_ADDRESS": dashboard}, "--allow-unauthenticated"),
        (("scale", "open", "rollouts=2"), {"RAY_ADDRESS": gcs}, "--allow-unauthenticated"),
    ):
        refused = volley(head, workspace, *arguments, **variables)
        assert refused.returncode == 2, refused.stdout + refused.stderr
        assert "has no token authentication" in refused.stderr, refused.stderr
        assert permit in refused.stderr
    assert not (workspace / "runs" / "open").exists()
    allowed = volley(head, workspace, "status", "open", "--allow-unauthenticated", RAY_API_SERVER_ADDRESS=dashboard)
    assert "the cluster has no job of the run 'open'" in allowed.stderr
    assert probe.check_cluster(gcs, True) == gcs
    # A loopback address can be reached from this machine only.
    assert probe.is_loopback("127.0.0.1")
    assert not probe.is_loopback(open_head)


def test_listener_that_is_not_a_cluster_is_refused() -> None:
    if not other_addresses():
        pytest.skip("this machine has only its loopback address")
    with socket.socket() as listener:
        listener.bind((other_addresses()[0], 0))
        listener.listen()
        address, port = listener.getsockname()
        with pytest.raises(ConfigError, match="did not show within"):
            probe.check_cluster(f"{address}:{port}", False)
    with pytest.raises(ConfigError, match="nothing answers"):
        probe.check_cluster(f"{address}:{port}", True)
