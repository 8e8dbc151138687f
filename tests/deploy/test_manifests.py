"""The Kubernetes manifests: the server knows every field, and the parts fit together."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.manifests import DEPLOY, KUBERAY, documents, gibibytes, pods, problems
from volley.cluster.on_ray.actors import RankActor, WorkerActor
from volley.cluster.recipe.config import load_recipe

FILES = sorted(path.name for path in KUBERAY.glob("*.yaml"))
RAY_FILES = ["raycluster.yaml", "rayjob.yaml"]


def test_every_file_is_tested() -> None:
    assert FILES == ["namespace.yaml", "networkpolicy.yaml", "raycluster.yaml", "rayjob.yaml", "storage.yaml"]


@pytest.mark.parametrize("name", FILES)
def test_a_strict_server_accepts_it(name: str) -> None:
    found = documents(name)
    assert found
    for manifest in found:
        assert problems(manifest) == []


def _edited(path: str, value: Any) -> dict[str, Any]:
    """rayjob.yaml with one value set or, where it is `...`, removed."""
    # Through JSON: what YAML's anchors share is one object, and here only one of its places is to change.
    manifest: dict[str, Any] = json.loads(json.dumps(documents("rayjob.yaml")[0]))
    target: Any = manifest
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    for part in parents:
        target = target[part]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return manifest


HEAD = "spec/rayClusterSpec/headGroupSpec"
CONTAINER = f"{HEAD}/template/spec/containers/0"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("spec/entryPoint", "volley", "spec.entryPoint: no such field"),
        (f"{CONTAINER}/securityContext/runAsNonroot", True, "runAsNonroot: no such field"),
        (f"{CONTAINER}/securityContext/capabilities/drop", "ALL", "not a list"),
        (f"{CONTAINER}/name", ..., "name: not set"),
        (f"{HEAD}/rayStartParams/num-cpus", 0, "0 is not str"),
        (f"{HEAD}/rayStartParams", ..., "rayStartParams: not set"),
        (f"{CONTAINER}/env/0/value", 1, "1 is not str"),
        ("spec/backoffLimit", "3", "'3' is not int"),
        ("kind", "RayJobs", "unknown kind"),
    ],
)
def test_the_check_finds_mistakes(path: str, value: Any, message: str) -> None:
    found = problems(_edited(path, value))
    assert len(found) == 1
    assert message in found[0]


def test_job_and_cluster_run_the_same_pods() -> None:
    job, cluster = documents("rayjob.yaml")[0]["spec"]["rayClusterSpec"], documents("raycluster.yaml")[0]["spec"]
    assert job == cluster


@pytest.mark.parametrize("name", RAY_FILES)
def test_volumes_fit(name: str) -> None:
    claims = {claim["metadata"]["name"]: claim for claim in documents("storage.yaml")}
    for role, pod in pods(documents(name)[0]).items():
        if role == "submitter":
            continue
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        (container,) = pod["spec"]["containers"]
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert {mount["name"] for mount in mounts.values()} == set(volumes)

        runs = volumes[mounts["/runs"]["name"]]["persistentVolumeClaim"]
        assert not mounts["/runs"].get("readOnly")
        assert claims[runs["claimName"]]["spec"]["accessModes"] == ["ReadWriteMany"]
        environment = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert environment["VOLLEY_RUNS"] == "/runs"

        data = volumes[mounts["/data"]["name"]]["persistentVolumeClaim"]
        assert mounts["/data"]["readOnly"]
        assert data["claimName"] in claims


@pytest.mark.parametrize("name", RAY_FILES)
def test_shared_memory_holds_the_object_store_and_fits_into_the_pod(name: str) -> None:
    spec = documents(name)[0]["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (shm,) = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm"]
        assert shm["medium"] == "Memory"
        size = gibibytes(shm["sizeLimit"])
        store = gibibytes(group["rayStartParams"]["object-store-memory"])
        limit = gibibytes(pod["containers"][0]["resources"]["limits"]["memory"])
        assert 2 * store <= size <= limit / 2


def test_the_workers_have_the_resources_of_the_recipe() -> None:
    job = documents("rayjob.yaml")[0]["spec"]
    recipe = load_recipe(*_recipe_of(job["entrypoint"]))
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    resources = group["template"]["spec"]["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"]
    gpus = group["replicas"] * int(resources["limits"]["nvidia.com/gpu"])
    assert gpus >= recipe.learner.ranks + recipe.rollout.workers * recipe.rollout.tensor_parallel
    assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]


def test_a_restarted_job_resumes() -> None:
    job = documents("rayjob.yaml")[0]["spec"]
    recipe = load_recipe(*_recipe_of(job["entrypoint"]))
    assert recipe.launcher == "ray"
    assert recipe.cluster.address == "auto"
    assert job["entrypoint"].startswith("exec volley train ")
    assert "--auto-resume" in job["entrypoint"].split()
    assert job["backoffLimit"] > 0
    assert job["metadata"]["volley_run"] == recipe.name
    # Both come from the claims that are mounted, so the next try of the job finds them again.
    assert all(path.startswith("/data/") for path in (recipe.model, recipe.data.train, recipe.data.test))


@pytest.mark.parametrize("name", RAY_FILES)
def test_a_stopped_job_has_the_time_to_save(name: str) -> None:
    for role, pod in pods(documents(name)[0]).items():
        if role == "submitter":
            continue
        (container,) = pod["spec"]["containers"]
        environment = {entry["name"]: entry.get("value") for entry in container["env"]}
        wait_s = int(environment["RAY_JOB_STOP_WAIT_TIME_S"])
        assert wait_s == 120
        assert pod["spec"]["terminationGracePeriodSeconds"] >= wait_s + 20
        assert container["lifecycle"]["preStop"]["exec"]["command"]


def test_hooks_use_files_of_the_image() -> None:
    head = pods(documents("raycluster.yaml")[0])["head"]["spec"]["containers"][0]
    interpreter, script = head["lifecycle"]["preStop"]["exec"]["command"]
    assert interpreter == "python"
    assert (DEPLOY.parent / Path(script).relative_to("/opt/volley")).is_file()


def test_a_worker_waits_only_for_our_actors() -> None:
    worker = pods(documents("raycluster.yaml")[0])["worker gpu"]["spec"]["containers"][0]
    shell, option, command = worker["lifecycle"]["preStop"]["exec"]["command"]
    assert (shell, option) == ("sh", "-c")
    (pattern,) = re.findall(r'pgrep -f "([^"]+)"', command)
    # Ray calls its processes by the actor's class; it does so for processes of its own as well.
    for waited_for in (RankActor, WorkerActor):
        assert re.search(pattern, f"ray::{waited_for.__name__}.call")
    for ignored in ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent", f"sh -c {command}", command):
        assert not re.search(pattern, ignored)
    (seconds,) = re.findall(r"\btimeout (\d+)", command)
    assert (
        120
        < int(seconds)
        < pods(documents("raycluster.yaml")[0])["worker gpu"]["spec"]["terminationGracePeriodSeconds"]
    )


def _recipe_of(entrypoint: str) -> tuple[str, list[str]]:
    """The recipe's path in this checkout, and the overrides."""
    _, volley, train, recipe, *rest = shlex.split(entrypoint)
    assert (volley, train) == ("volley", "train")
    path = DEPLOY.parent / Path(recipe).relative_to("/opt/volley")
    return str(path), [word for word in rest if not word.startswith("--")]
