"""The Ray cluster under a run: connect to one or start a private one, safely, and see whether it is large enough.

Ray runs the code of whoever reaches it, so nothing here starts or uses a cluster without token authentication, unless
the recipe says `cluster.allow_unauthenticated: true` or the cluster is at a loopback address.
"""

import contextlib
import ipaddress
import os
import socket
import subprocess
import urllib.parse
from dataclasses import dataclass

import psutil
import ray

from cluster.config import Recipe
from cluster.ray_token import TOKEN_FILE, cluster_address, has_token, read_token
from rollout.errors import ConfigError

NAMESPACE = "volley"
PROBE_S = 2.0


@dataclass(frozen=True)
class Needs:
    """What a run asks of a cluster. worker_cpus, rank_cpus: of one worker, one rank; gpus likewise."""

    workers: int
    ranks: int
    worker_cpus: float
    rank_cpus: float
    worker_gpus: int
    rank_gpus: int

    @property
    def cpus(self) -> float:
        return self.workers * self.worker_cpus + self.ranks * self.rank_cpus

    @property
    def gpus(self) -> int:
        return self.workers * self.worker_gpus + self.ranks * self.rank_gpus


def connect(recipe: Recipe) -> None:
    """Join the cluster that the recipe names, or start a private one. Raises `ConfigError`."""
    address = cluster_address(recipe)
    if address:
        check_reachable(address, recipe.cluster.allow_unauthenticated)
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
    wait = 'while kill -0 "$0" 2>/dev/null; do sleep 1; done; kill -9 "$@" 2>/dev/null'
    subprocess.Popen(
        ["sh", "-c", wait, str(os.getpid()), *started],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def check_reachable(address: str, allow_unauthenticated: bool) -> None:
    """Refuse at once what Ray would only find out after 20 seconds: nobody there, no token, a cluster without one."""
    if address == "auto":
        return
    host, port = split_address(address)
    try:
        socket.create_connection((host, port), PROBE_S).close()
    except OSError as error:
        raise ConfigError(
            f"cluster.address: nothing answers at {host}:{port} ({error.strerror or error}); start a cluster with "
            "volley up, or correct the address."
        ) from None
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "token" and not has_token():
        raise ConfigError(
            "RAY_AUTH_MODE is token, but there is no token; put it into ~/.ray/auth_token (mode 0600), or name its "
            "file in RAY_AUTH_TOKEN_PATH."
        )
    if not has_token() and not allow_unauthenticated and not is_loopback(host):
        raise ConfigError(
            f"cluster.address: no token is set for the cluster at {host}, and without one Ray runs anybody's code; set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH, or say cluster.allow_unauthenticated: true."
        )
    if not address.startswith("ray://") and os.environ.get("RAY_USE_TLS", "0") in ("", "0"):
        _check_token(host, port)


def _check_token(host: str, port: int) -> None:
    """Ask the cluster for its id, as Ray would for 20 seconds. Other answers than a refusal are Ray's to judge."""
    import grpc
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    token = read_token()
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        ask = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel).GetClusterId
        try:
            metadata = [("authorization", f"Bearer {token}")] if token else []
            ask(gcs_service_pb2.GetClusterIdRequest(), timeout=PROBE_S, metadata=metadata)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                raise ConfigError(
                    f"cluster.address: the cluster at {host}:{port} does not take this token; put the cluster's own "
                    f"into {TOKEN_FILE} (mode 0600), or name its file in RAY_AUTH_TOKEN_PATH."
                ) from None


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `ray://host:port`, `http://host:port` or `host:port`."""
    parts = urllib.parse.urlsplit(address if "://" in address else f"ray://{address}")
    try:
        if parts.hostname and parts.port:
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise ConfigError(f"cluster.address is '{address}'; write host:port, or auto.")


def needs_of(recipe: Recipe) -> Needs:
    """What the recipe takes of the connected cluster. Raises `ConfigError` when it has less."""
    total = ray.cluster_resources()
    cpus, gpus = total.get("CPU", 0.0), int(total.get("GPU", 0))
    rollout, learner, config = recipe.rollout, recipe.learner, recipe.cluster
    if recipe.transfer.backend == "nccl" and not gpus:
        raise ConfigError(
            "transfer.backend is nccl, but the cluster has no GPU; set transfer.backend: auto (gloo on CPUs)."
        )
    share = max(1, min(16, int(cpus / (rollout.workers + learner.ranks))))
    needs = Needs(
        rollout.workers,
        learner.ranks,
        config.worker_cpus or share,
        config.rank_cpus or share,
        rollout.tensor_parallel if gpus else 0,
        1 if gpus else 0,
    )
    shared = ", or set launcher: local, where learner and engine share one"
    for what, has, worker, rank, need, instead in (
        ("GPUs", gpus, needs.worker_gpus, needs.rank_gpus, needs.gpus, shared),
        ("CPUs", cpus, needs.worker_cpus, needs.rank_cpus, needs.cpus, ""),
    ):
        if need > has:
            raise ConfigError(
                f"the cluster has {has:g} {what}, and the recipe needs {need:g}: {needs.workers} rollout workers x "
                f"{worker:g} + {needs.ranks} learner ranks x {rank:g}; lower rollout.workers, rollout.tensor_parallel "
                f"or learner.ranks, or add nodes{instead}."
            )
    return needs


def transport_of(recipe: Recipe, needs: Needs) -> str:
    """The weight-transfer backend: nccl between GPUs, gloo between CPUs."""
    if recipe.transfer.backend != "auto":
        return recipe.transfer.backend
    return "nccl" if needs.rank_gpus else "gloo"


def disconnect() -> None:
    """Leave the cluster; a private one ends."""
    with contextlib.suppress(Exception):
        ray.shutdown()


@contextlib.contextmanager
def _readable_errors(address: str):  # type: ignore[no-untyped-def]
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


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
    except (OSError, ValueError):
        return False
