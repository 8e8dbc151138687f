"""Whether a cluster is there, takes this user's token, and asks everybody for one: known before anything heavy starts.

Ray tries for 20 seconds before it says that it failed to connect, and it joins a cluster that runs anybody's code
without a word. So a cluster is asked twice, as a stranger and with our token, in less than `PROBE_S` together. A
cluster that uses Ray's TLS is not asked: there the certificates keep strangers out.
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
BY_RECIPE = "say cluster.allow_unauthenticated: true"
BY_FLAG = "add --allow-unauthenticated"
DASHBOARD = "http://127.0.0.1:8265"
DASHBOARD_VARIABLE = "RAY_API_SERVER_ADDRESS"

Ask = Callable[[str, float], bool | None]
"""(token, seconds) -> whether the cluster answered; None where it said neither yes nor no. token: "" for none."""


def check_recipe(recipe: Recipe) -> None:
    """Refuse the cluster that a recipe names, where `check_cluster` does. A private one is not there yet."""
    address = cluster_address(recipe)
    if recipe.launcher == "ray" and address:
        prepare_token()
        check_cluster(address, recipe.cluster.allow_unauthenticated)


def check_cluster(address: str, allow_unauthenticated: bool, permit: str = BY_RECIPE) -> str:
    """The address that `auto` stands for, or the one given; refused where Ray would fail late or be unsafe. permit:
    how the user can allow a cluster without authentication. Raises `ConfigError`."""
    address = resolve(address)
    what = "cluster.address"
    host, port = split_address(address, what)
    deadline = time.monotonic() + PROBE_S
    if reason := _closed(host, port):
        raise ConfigError(
            f"{what}: nothing answers at {host}:{port} ({reason}); start a cluster with volley up, or correct the "
            "address."
        )
    _check_token_is_there()
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("", "0", "false"):
        # The server of Ray's client knows other calls than the cluster's own; both refuse strangers first.
        call = "RayletDriver/ClusterInfo" if address.startswith("ray://") else "NodeInfoGcsService/GetClusterId"
        _judge(f"{what}: ", f"{host}:{port}", _ask_grpc(host, port, call), deadline, allow_unauthenticated, permit)
    return address


def check_dashboard(allow_unauthenticated: bool, permit: str) -> str:
    """The address of the jobs API; refused as by `check_cluster`. Raises `ConfigError`."""
    address = os.environ.get(DASHBOARD_VARIABLE, DASHBOARD)
    host, port = split_address(address, DASHBOARD_VARIABLE)
    deadline = time.monotonic() + PROBE_S
    if _closed(host, port):
        raise ConfigError(
            f"no Ray dashboard answers at {address}; start one with volley up, or set {DASHBOARD_VARIABLE}."
        )
    _check_token_is_there()
    _judge("", address, _ask_http(address), deadline, allow_unauthenticated, permit)
    return address


def resolve(address: str) -> str:
    """What `auto` stands for: RAY_ADDRESS, or the cluster that was started on this machine. Raises `ConfigError`."""
    if address != "auto":
        return address
    if named := os.environ.get("RAY_ADDRESS", ""):
        return resolve(named) if named != "auto" else _of_this_machine()
    return _of_this_machine()


def split_address(address: str, what: str = "cluster.address") -> tuple[str, int]:
    """Host and port of `ray://host:port`, `http://host:port` or `host:port`."""
    parts = urllib.parse.urlsplit(address if "://" in address else f"ray://{address}")
    try:
        if parts.hostname and parts.port:
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise ConfigError(f"{what} is '{address}'; write host:port{'' if '://' in address else ', or auto'}.")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
    except (OSError, ValueError):
        return False


def _of_this_machine() -> str:
    from ray._private.services import get_ray_address_from_environment

    try:
        return str(get_ray_address_from_environment("auto", None))
    except ConnectionError:
        raise ConfigError(
            "cluster.address is auto, but no Ray cluster runs on this machine and RAY_ADDRESS names none; start one "
            "with volley up, or write host:port."
        ) from None


def _closed(host: str, port: int) -> str:
    """Why nobody can be reached there; "" where somebody can."""
    try:
        socket.create_connection((host, port), PROBE_S - 0.5).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _check_token_is_there() -> None:
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "token" and not read_token():
        raise ConfigError(
            f"RAY_AUTH_MODE is token, but there is no token; put it into {TOKEN_FILE} (mode 0600), or name its file in "
            "RAY_AUTH_TOKEN_PATH."
        )


def _judge(what: str, where: str, ask: Ask, deadline: float, allowed: bool, permit: str) -> None:
    token = read_token() if os.environ.get("RAY_AUTH_MODE", "token").lower() == "token" else ""
    host, _ = split_address(where)
    answered = ask("", max(0.1, deadline - time.monotonic()))
    if answered is False:
        if not token or ask(token, max(0.1, deadline - time.monotonic())) is False:
            raise ConfigError(
                f"{what}the cluster at {where} does not take this machine's token"
                f"{'' if token else ' (there is none)'}; put the cluster's own into {TOKEN_FILE} (mode 0600), or name "
                "its file in RAY_AUTH_TOKEN_PATH."
            )
        return
    if allowed or is_loopback(host):
        return
    if answered:
        raise ConfigError(
            f"{what}the cluster at {where} asks nobody for a token, so it runs the code of all who reach it; start "
            f"it with RAY_AUTH_MODE=token, or {permit}."
        )
    raise ConfigError(
        f"{what}the cluster at {where} did not say within {PROBE_S:g} s whether it asks for a token; correct the "
        f"address, or {permit}."
    )


def _ask_grpc(host: str, port: int, call: str) -> Ask:
    """As Ray's own first question, in plain bytes: an empty request has no fields to encode."""

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
