"""Connect to the Ray cluster of a run, or start a private one, with authentication.

Ray runs code from anyone who can connect to it. A cluster without token authentication is therefore neither started nor
used, unless the recipe sets `cluster.allow_unauthenticated: true` or the cluster is at a loopback address.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil
import ray

from volley.cluster.on_ray.probe import check_cluster
from volley.cluster.on_ray.token import cluster_address, own_token
from volley.cluster.on_ray.working_directory import check_working_directory
from volley.cluster.recipe.config import Recipe
from volley.rollout.errors import ConfigError

NAMESPACE = "volley"
NAME_S = 5.0
"""How long the actors of a run whose driver was killed may still exist."""


def connect(recipe: Recipe) -> None:
    """Join the cluster that the recipe names, or start a private one. Raises `ConfigError`."""
    check_working_directory(Path.cwd())
    address = cluster_address(recipe)
    if address:
        address = check_cluster(address, recipe.cluster.allow_unauthenticated)
        with _readable_errors(address):
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
        return
    # The metrics agent takes a tenth of a core, and a private cluster has no dashboard that shows its metrics.
    os.environ.setdefault("RAY_enable_metrics_collection", "0")
    cores = len(os.sched_getaffinity(0))
    wanted = recipe.rollout.workers * max(recipe.cluster.worker_cpus, 1) + recipe.learner.ranks * max(
        recipe.cluster.rank_cpus, 1
    )
    ray.init(
        address="local",
        namespace=NAMESPACE,
        # More processes than cores is slow, but on a single machine the user may choose it.
        num_cpus=max(cores, int(wanted + 0.999)),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.1",
    )
    _end_with_this_process()


def _end_with_this_process() -> None:
    """End a private cluster even when its driver was killed: Ray's agents outlive their raylet by at least a minute
    (measured). A shell waits until this process has ended, and then kills the processes of the cluster."""
    started = [str(child.pid) for child in psutil.Process().children(recursive=True)]
    token = own_token()
    wait = (
        'driver=$1 token=$2; shift 2; while kill -0 "$driver" 2>/dev/null; do sleep 1; done; kill -9 "$@" 2>/dev/null; '
        '[ -z "$token" ] || { rm -f "$token"; rmdir "${token%/*}"; }'
    )
    subprocess.Popen(
        ["sh", "-c", wait, "sh", str(os.getpid()), str(token or ""), *started],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def disconnect() -> None:
    """Leave the cluster; a private one ends."""
    with contextlib.suppress(Exception):
        ray.shutdown()


def nodes() -> Sequence[Mapping[str, float]]:
    """The resources of each live node of the connected cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def wait_for_name(run: str) -> None:
    """Wait until no actor of a run with this name is alive. Raises `ConfigError` if they do not end within `NAME_S`:
    then they belong to another run that is alive."""
    deadline = time.monotonic() + NAME_S
    while taken := [name for name in ray.util.list_named_actors() if name.startswith(f"{run}:")]:
        if time.monotonic() > deadline:
            raise ConfigError(
                f"a run named '{run}' already exists on this cluster ({taken[0]}), started from this or another "
                "directory; wait for it, stop it, or give this run another name (name=...)."
            )
        time.sleep(0.2)


@contextlib.contextmanager
def _readable_errors(address: str) -> Iterator[None]:
    try:
        yield
    except (ConnectionError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())
        if "ersion mismatch" in text:
            raise ConfigError(
                f"cluster.address: {address} runs different versions than this client ({text[:300]}); install the same "
                "versions of Ray and Python on both sides."
            ) from None
        raise ConfigError(f"cluster.address: cannot join the cluster at {address} ({text[:300]}).") from None
