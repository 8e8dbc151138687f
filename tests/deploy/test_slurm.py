"""Runs deploy/slurm/volley.sbatch with stubs for srun, ray, volley and scontrol (`slurm_stubs.py`)."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.manifests import DEPLOY
from tests.deploy.slurm_stubs import install

SCRIPT = DEPLOY / "slurm" / "volley.sbatch"


class Job:
    """One start of the script in a fake allocation."""

    def __init__(self, root: Path, job_id: int, **environment: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.log_file, self.tokens_file, self.runs_file = root / "log", root / "tokens", root / "runs"
        self.secret = root / "shared" / f"slurm-{job_id}"
        self.scratch = Path(f"/tmp/volley-slurm-{job_id}")
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(root),
            "PYTHONPATH": str(root / "modules"),
            "STUB_LOG": str(self.log_file),
            "STUB_NODES": str(root / "nodes"),
            "STUB_TOKENS": str(self.tokens_file),
            "STUB_RUNS": str(self.runs_file),
            "VOLLEY_VENV": str(root / "venv"),
            "VOLLEY_SHARED": str(root / "shared"),
            "HEAD_IP": "127.0.0.1",
            "RAY_PORT": str(port),
            "RAY_AUTH_TOKEN": "leftover-of-the-login-shell",
            "JOIN_S": "10",
            "SLURM_JOB_ID": str(job_id),
            "SLURM_JOB_NUM_NODES": "3",
            "SLURM_CPUS_PER_TASK": "8",
            "SLURMD_NODENAME": "node0",
            **environment,
        }
        self.output, self.code = "", -1

    def start(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            ["bash", str(SCRIPT), *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait_for_the_run(self) -> None:
        deadline = time.monotonic() + 20
        while not self.runs_file.exists():
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def finish(self) -> None:
        self.output, _ = self.process.communicate(timeout=40)
        self.code = self.process.returncode

    @property
    def log(self) -> list[str]:
        return self.log_file.read_text().splitlines() if self.log_file.exists() else []

    def lines(self, start: str) -> list[str]:
        return [line for line in self.log if line.startswith(start)]

    def assert_nothing_is_left(self) -> None:
        assert not self.secret.exists()
        assert len(self.lines("ray ends")) == len(self.lines("ray start"))
        left = subprocess.run(["pgrep", "-g", str(self.process.pid)], capture_output=True, text=True)
        assert left.stdout == ""


@pytest.fixture
def job(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Job]:
    """Parametrised indirectly with additional environment variables."""
    install(tmp_path / "venv" / "bin", tmp_path / "modules")
    made = Job(tmp_path, 10**8 + os.getpid() * 100 + request.node.callspec.indices.get("job", 0), **request.param)
    yield made
    if hasattr(made, "process") and made.process.poll() is None:
        os.killpg(made.process.pid, signal.SIGKILL)
    shutil.rmtree(made.scratch, ignore_errors=True)


@pytest.mark.parametrize("job", [{}], indirect=True)
def test_a_run_from_start_to_end(job: Job) -> None:
    job.start("recipe.yaml", "steps=3", "learner.lr=1e-5")
    job.finish()
    assert job.code == 0, job.output
    port = job.environment["RAY_PORT"]
    assert job.lines("volley train") == [
        f"volley train recipe.yaml launcher=ray cluster.address=127.0.0.1:{port} steps=3 learner.lr=1e-5 --auto-resume"
    ]
    head, *workers = job.lines("ray start")
    assert f"--head --node-ip-address=127.0.0.1 --port={port} --dashboard-host=127.0.0.1" in head
    assert len(workers) == 2
    assert all(f"--address=127.0.0.1:{port}" in worker for worker in workers)
    assert all("--block" in each and "--num-cpus=8" in each for each in (head, *workers))
    (head_step,) = [line for line in job.lines("srun") if "--head" in line]
    assert "--nodelist=node0" in head_step
    (worker_step,) = [line for line in job.lines("srun") if "--exclude=" in line]
    assert "--nodes=2 --ntasks=2 --exclude=node0" in worker_step
    assert job.lines("scontrol") == []
    assert not job.scratch.exists()
    job.assert_nothing_is_left()


@pytest.mark.parametrize("job", [{}], indirect=True)
def test_the_token_is_private_and_new(job: Job) -> None:
    tokens = []
    for _ in range(2):
        job.log_file.unlink(missing_ok=True)
        Path(job.environment["STUB_NODES"]).unlink(missing_ok=True)
        job.start("recipe.yaml")
        job.finish()
        assert job.code == 0, job.output
        assert set(job.lines("ray sees")) == {"ray sees token False 0o600 0o700"}
        tokens.append(set(job.tokens_file.read_text().split()))
        job.tokens_file.unlink()
        (token,) = tokens[-1]
        assert re.fullmatch("[0-9a-f]{64}", token)
        assert token not in job.output + "".join(job.log)
        job.assert_nothing_is_left()
    assert tokens[0] != tokens[1]


@pytest.mark.parametrize("job", [{"RUN_CODE": "4"}], indirect=True)
def test_a_failed_run_keeps_its_exit_code_and_is_not_requeued(job: Job) -> None:
    job.start("recipe.yaml")
    job.finish()
    assert job.code == 4
    assert job.lines("scontrol") == []
    assert job.scratch.exists()  # with Ray's logs
    job.assert_nothing_is_left()


@pytest.mark.parametrize("job", [{"RUN_S": "60"}], indirect=True)
def test_before_the_time_limit_it_saves_and_requeues_itself(job: Job) -> None:
    job.start("recipe.yaml")
    job.wait_for_the_run()
    job.process.send_signal(signal.SIGUSR1)
    time.sleep(0.2)
    # Slurm may send a second signal, which would make Volley exit without a checkpoint.
    job.process.send_signal(signal.SIGTERM)
    job.finish()
    assert job.code == 0, job.output
    assert job.lines("volley stops") == ["volley stops"]
    assert job.lines("volley saved") == ["volley saved"]
    assert job.lines("scontrol") == [f"scontrol requeue {job.environment['SLURM_JOB_ID']}"]
    assert job.log[-1].startswith("scontrol")  # everything else has ended before
    job.assert_nothing_is_left()


@pytest.mark.parametrize("job", [{"RUN_S": "60"}], indirect=True)
def test_after_a_stop_signal_it_saves_and_is_not_requeued(job: Job) -> None:
    job.start("recipe.yaml")
    job.wait_for_the_run()
    job.process.send_signal(signal.SIGTERM)
    job.finish()
    assert job.code == 0, job.output
    assert job.lines("volley saved") == ["volley saved"]
    assert job.lines("scontrol") == []
    # Ray must live until the checkpoint is written.
    assert job.log.index("volley saved") < job.log.index("ray ends")
    job.assert_nothing_is_left()


@pytest.mark.parametrize("job", [{"RUN_S": "60", "RUN_CODE": "1"}], indirect=True)
def test_a_run_that_could_not_save_is_not_requeued(job: Job) -> None:
    job.start("recipe.yaml")
    job.wait_for_the_run()
    job.process.send_signal(signal.SIGUSR1)
    job.finish()
    assert job.code == 1
    assert job.lines("scontrol") == []
    job.assert_nothing_is_left()


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"WORKERS_HANG": "1", "JOIN_S": "2"}, "1 of 3 nodes have joined"),
        ({"HEAD_FAILS": "1"}, "the Ray head did not start"),
        ({"NODE_IS_BLIND": "1"}, "set VOLLEY_SHARED to a directory that all nodes see"),
    ],
    indirect=["job"],
)
def test_failed_starts_are_reported_in_time(job: Job, message: str) -> None:
    started = time.monotonic()
    job.start("recipe.yaml")
    job.finish()
    assert job.code == 1
    assert message in job.output
    assert time.monotonic() - started < 20
    assert job.lines("volley") == []
    assert not job.secret.exists()


@pytest.mark.parametrize("job", [{}], indirect=True)
def test_without_a_recipe_it_prints_its_usage(job: Job) -> None:
    job.start()
    job.finish()
    assert job.code == 2
    assert "usage: sbatch" in job.output
    assert job.log == []


@pytest.mark.parametrize("job", [{"SLURM_JOB_NUM_NODES": "1"}], indirect=True)
def test_one_node_has_no_workers(job: Job) -> None:
    job.start("recipe.yaml")
    job.finish()
    assert job.code == 0, job.output
    assert len(job.lines("ray start")) == 1
    job.assert_nothing_is_left()


def test_the_signal_is_early_enough_and_sent_to_the_script_only() -> None:
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", SCRIPT.read_text(), re.MULTILINE))
    target, seconds = re.fullmatch(r"(B:USR1)@(\d+)", options["signal"]).groups()  # type: ignore[union-attr]
    assert target == "B:USR1"
    assert int(seconds) >= 300
    assert {"requeue", "exclusive"} <= options.keys()
    assert options["ntasks-per-node"] == "1"
    assert options["open-mode"] == "append"
