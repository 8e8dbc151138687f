"""Runs deploy/kuberay/stop_jobs.py against a fake of Ray's jobs API."""

import importlib.util
import time
from types import ModuleType, SimpleNamespace

import pytest

from tests.deploy.manifests import KUBERAY, documents, pods


@pytest.fixture
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stop_jobs", KUBERAY / "stop_jobs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Status(str):
    def is_terminal(self) -> bool:
        return self in ("STOPPED", "SUCCEEDED", "FAILED")


class _Client:
    """jobs: name to status. saves_s: how long a stopped job takes to end."""

    def __init__(self, jobs: dict[str, str], saves_s: float) -> None:
        self.jobs = {name: _Status(status) for name, status in jobs.items()}
        self.stopped_at: dict[str, float] = {}
        self.saves_s = saves_s

    def list_jobs(self) -> list[SimpleNamespace]:
        listed = [SimpleNamespace(submission_id=name, status=status) for name, status in self.jobs.items()]
        # A driver that was not submitted, for instance a shell: Ray lists it without an id, and it cannot be stopped.
        return [*listed, SimpleNamespace(submission_id=None, status=_Status("RUNNING"))]

    def stop_job(self, name: str) -> bool:
        assert name not in self.stopped_at
        self.stopped_at[name] = time.monotonic()
        return True

    def get_job_status(self, name: str) -> _Status:
        ended = name in self.stopped_at and time.monotonic() - self.stopped_at[name] >= self.saves_s
        return _Status("STOPPED") if ended else self.jobs[name]


def test_waits_until_running_jobs_have_saved(hook: ModuleType) -> None:
    client = _Client({"a": "RUNNING", "b": "PENDING", "c": "SUCCEEDED"}, saves_s=0.5)
    started = time.monotonic()
    assert hook.stop_jobs(client, 10.0) == []
    assert set(client.stopped_at) == {"a", "b"}
    assert 0.5 <= time.monotonic() - started < 5


def test_jobs_that_do_not_end_are_named(hook: ModuleType) -> None:
    client = _Client({"a": "RUNNING"}, saves_s=1e9)
    assert hook.stop_jobs(client, 0.3) == ["a"]


def test_nothing_to_stop_takes_no_time(hook: ModuleType) -> None:
    client = _Client({"c": "FAILED"}, saves_s=0)
    started = time.monotonic()
    assert hook.stop_jobs(client, 10.0) == []
    assert time.monotonic() - started < 0.15


def test_it_waits_longer_than_ray_and_shorter_than_kubernetes(hook: ModuleType) -> None:
    head = pods(documents("rayjob.yaml")[0])["head"]["spec"]
    environment = {entry["name"]: entry.get("value") for entry in head["containers"][0]["env"]}
    assert int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) < hook.WAIT_S < head["terminationGracePeriodSeconds"]
