"""Check that a cluster answers, requires a token and accepts ours, before anything heavy is imported.

Ray itself tries for 20 seconds before it reports that it cannot connect, and it silently joins a cluster that runs code
from anyone. So a cluster is asked twice, without a token and with ours, in at most `PROBE_S` together. A cluster that
uses Ray's TLS is not asked, because its certificates already keep others out.
"""

import ipaddress
import os
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable

from volley.cluster.on_ray.token import TOKEN_FILE, cluster_address, prepare_token, read_token
from volley.cluster.recipe.config import Recipe
from volley.rollout.errors import ConfigError

PROBE_S = 2.5
BY_RECIPE = "set cluster.allow_unauthenticated: true"
BY_FLAG = "add --allow-unauthenticated"
DASHBOARD = "http://127.0.0.1:8265"
DASHBOARD_VARIABLE = "RAY_API_SERVER_ADDRESS"

Ask = Callable[[str, float], bool | None]
"""(token, timeout in seconds) -> whether the cluster accepted the request; None if that is not clear. token: "" for
none."""


def check_recipe(recipe: Recipe) -> None:
    """Run `check_cluster` on the cluster that a recipe names. A private one has not been started yet."""
    address = cluster_address(recipe)
    if recipe.launcher == "ray" and address:
        prepare_token()
        check_cluster(address, recipe.cluster.allow_unauthenticated)


def check_cluster(address: str, allow_unauthenticated: bool, permit: str = BY_RECIPE) -> str:
    """The address of the cluster, with `auto` resolved. Raises `ConfigError` where Ray would fail late or be unsafe.

    permit: tells the user how to allow a cluster without authentication.
    """
    address = resolve(address)
    what = "cluster.address"
    host, port = split_address(address, what)
    deadline = time.monotonic() + PROBE_S
    if reason := _connection_error(host, port):
        raise ConfigError(
            f"{what}: nothing answers at {host}:{port} ({reason}); start a cluster with volley up, or correct the "
            "address."
        )
    _check_token_is_there()
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("", "0", "false"):
        # Ray's client server and its control service have different calls; both check the token first.
        call = "RayletDriver/ClusterInfo" if address.startswith("ray://") else "NodeInfoGcsService/GetClusterId"
        _check_authentication(
            f"{what}: ", f"{host}:{port}", _ask_grpc(host, port, call), deadline, allow_unauthenticated, permit
        )
    return address


def check_dashboard(allow_unauthenticated: bool, permit: str) -> str:
    """The address of the jobs API. Raises `ConfigError` as `check_cluster` does."""
    address = os.environ.get(DASHBOARD_VARIABLE, DASHBOARD)
    host, port = split_address(address, DASHBOARD_VARIABLE)
    deadline = time.monotonic() + PROBE_S
    if _connection_error(host, port):
        raise ConfigError(
            f"no Ray dashboard answers at {address}; start one with volley up, or set {DASHBOARD_VARIABLE}."
        )
    _check_token_is_there()
    _check_authentication("", address, _ask_http(address), deadline, allow_unauthenticated, permit)
    return address


def resolve(address: str) -> str:
    """Resolve `auto`: RAY_ADDRESS, or else the cluster that was started on this machine. Raises `ConfigError`."""
    if address != "auto":
        return address
    if named := os.environ.get("RAY_ADDRESS", ""):
        return resolve(named) if named != "auto" else _local_cluster()
    return _local_cluster()


def split_address(address: str, what: str = "cluster.address") -> tuple[str, int]:
    """Host and port of `ray://host:port`, `http://host:port` or `host:port`."""
    parts = urllib.parse.urlsplit(address if "://" in address else f"ray://{address}")
    try:
        if parts.hostname and parts.port:
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise ConfigError(f"{what} is '{address}'; it must be host:port{'' if '://' in address else ' or auto'}.")


def is_loopback(host: str) -> bool:
    """Whether `host` can be reached from this machine only."""
    try:
        return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
    except (OSError, ValueError):
        return False


def _local_cluster() -> str:
    from ray._private.services import get_ray_address_from_environment

    try:
        return str(get_ray_address_from_environment("auto", None))
    except ConnectionError:
        raise ConfigError(
            "cluster.address is auto, but no Ray cluster runs on this machine and RAY_ADDRESS is not set; start one "
            "with volley up, or set host:port."
        ) from None


def _connection_error(host: str, port: int) -> str:
    """Why no connection is possible; "" if one is."""
    try:
        socket.create_connection((host, port), PROBE_S - 0.5).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _check_token_is_there() -> None:
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "token" and not read_token():
        raise ConfigError(
            f"RAY_AUTH_MODE is token, but there is no token; put it into {TOKEN_FILE} (mode 0600), or set "
            "RAY_AUTH_TOKEN_PATH to its file."
        )


def _check_authentication(what: str, where: str, ask: Ask, deadline: float, allowed: bool, permit: str) -> None:
    token = read_token() if os.environ.get("RAY_AUTH_MODE", "token").lower() == "token" else ""
    host, _ = split_address(where)
    answered = ask("", max(0.1, deadline - time.monotonic()))
    if answered is False:
        if not token or ask(token, max(0.1, deadline - time.monotonic())) is False:
            raise ConfigError(
                f"{what}the cluster at {where} does not accept this machine's token"
                f"{'' if token else ' (there is none)'}; put the cluster's token into {TOKEN_FILE} (mode 0600), or set "
                "RAY_AUTH_TOKEN_PATH to its file."
            )
        return
    if allowed or is_loopback(host):
        return
    if answered:
        raise ConfigError(
            f"{what}the cluster at {where} has no token authentication, so it runs code from anyone who can connect to "
            f"it; start it with RAY_AUTH_MODE=token, or {permit}."
        )
    raise ConfigError(
        f"{what}the cluster at {where} did not show within {PROBE_S:g} s whether it requires a token; correct the "
        f"address, or {permit}."
    )


def _ask_grpc(host: str, port: int, call: str) -> Ask:
    """Sends the same first call as Ray does, as plain bytes: an empty request has no fields to encode."""

    def ask(token: str, seconds: float) -> bool | None:
        import grpc

        with grpc.insecure_channel(f"{host}:{port}") as channel:
            method = channel.unary_unary(f"/ray.rpc.{call}")
            metadata = [("authorization", f"Bearer {token}")] if token else []
            try:
                method(b"", timeout=seconds, metadata=metadata)
            except grpc.RpcError as error:
                return False if error.code() == grpc.StatusCode.UNAUTHENTICATED else None
            return True

    return ask


def _ask_http(address: str) -> Ask:
    def ask(token: str, seconds: float) -> bool | None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(f"{address.rstrip('/')}/api/jobs/", headers=headers)
        try:
            urllib.request.urlopen(request, timeout=seconds).close()
        except urllib.error.HTTPError as error:
            return False if error.code in (401, 403) else None
        except (OSError, ValueError):
            return None
        return True

    return ask
