"""The Ray cluster under a run: connect to one or start a private one, safely.

Ray runs the code of whoever reaches it, so nothing here starts or uses a cluster without token authentication, unless
the recipe says `cluster.allow_unauthenticated: true` or the cluster is at a loopback address.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence

import psutil
import ray

from volley.cluster.on_ray.probe import check_cluster
from volley.cluster.on_ray.token import cluster_address, own_token
from volley.cluster.recipe.config import Recipe
from volley.rollout.errors import ConfigError

NAMESPACE = "volley"
NAME_S = 5.0


def connect(recipe: Recipe) -> None:
    """Join the cluster that the recipe names, or start a private one. Raises `ConfigError`."""
    address = cluster_address(recipe)
    if address:
        address = check_cluster(address, recipe.cluster.allow_unauthenticated)
        with _readable_errors(address):
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
        return
    # Its agent would take a tenth of a core to collect what nobody looks at.
    os.environ.setdefault("RAY_enable_metrics_collection", "0")
    cores = len(os.sched_getaffinity(0))
    wanted = recipe.rollout.workers * max(recipe.cluster.worker_cpus, 1) + recipe.learner.ranks * max(
        recipe.cluster.rank_cpus, 1
    )
    ray.init(
        address="local",
        namespace=NAMESPACE,
        # More processes than cores is slow, but on one machine it is the user's own choice.
        num_cpus=max(cores, int(wanted + 0.999)),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.1",
    )
    _end_with_this_process()


def _end_with_this_process() -> None:
    """Let a private cluster end with a driver that was killed: Ray's agents outlive their raylet (measured: a minute at
    least). A shell waits for this process to be gone, and then ends what is left."""
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
    """Until no actor of a run of this name lives. One whose driver was killed is gone within seconds; so another run
    is meant. Raises `ConfigError`."""
    deadline = time.monotonic() + NAME_S
    while taken := [name for name in ray.util.list_named_actors() if name.startswith(f"{run}:")]:
        if time.monotonic() > deadline:
            raise ConfigError(
                f"a run named '{run}' is on this cluster already ({taken[0]}), from this or another directory; wait "
                "for it, stop it, or give this one another name (name=...)."
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
                f"cluster.address: {address} runs other versions than this client ({text[:300]}); install the same Ray "
                "and Python on both sides."
            ) from None
        raise ConfigError(f"cluster.address: cannot join the cluster at {address} ({text[:300]}).") from None
