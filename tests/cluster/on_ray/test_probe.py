"""The probe against servers that answer like Ray's, and the token of a private cluster. No Ray is started; tests with a
real head are in test_jobs.py."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest

from volley.cluster.on_ray import probe
from volley.rollout.errors import ConfigError

TOKEN = "the right one"


class Gcs(grpc.GenericRpcHandler):
    """Answers every call with the right token; with `is_open`, every call."""

    def __init__(self, is_open: bool) -> None:
        self._is_open = is_open

    def service(self, details: Any) -> Any:
        def answer(request: bytes, context: Any) -> bytes:
            if not self._is_open and dict(context.invocation_metadata()).get("authorization") != f"Bearer {TOKEN}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def clusters() -> Iterator[dict[bool, str]]:
    """{whether it is open: address}."""
    servers, addresses = [], {}
    for is_open in (True, False):
        server = grpc.server(ThreadPoolExecutor(2))
        server.add_generic_rpc_handlers((Gcs(is_open),))
        addresses[is_open] = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        servers.append(server)
    yield addresses
    for server in servers:
        server.stop(None)


@pytest.fixture(autouse=True)
def with_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)


def test_cluster_is_judged_by_its_answer_without_a_token(
    clusters: dict[bool, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert probe.check_cluster(clusters[False], False) == clusters[False]
    # An open cluster is accepted at a loopback address only, with a token or without.
    assert probe.check_cluster(clusters[True], False) == clusters[True]
    monkeypatch.setattr(probe, "is_loopback", lambda host: False)
    assert probe.check_cluster(clusters[False], False) == clusters[False]
    monkeypatch.setenv("RAY_ADDRESS", clusters[True])
    for address in (clusters[True], "auto"):
        with pytest.raises(ConfigError, match=r"has no token authentication.*add --allow-unauthenticated"):
            probe.check_cluster(address, False, probe.BY_FLAG)
    assert probe.check_cluster("auto", True) == clusters[True]


@pytest.mark.parametrize("token", ["", "another"])
def test_missing_or_wrong_token_is_refused_even_if_open_clusters_are_allowed(
    clusters: dict[bool, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    monkeypatch.setattr("volley.cluster.on_ray.token.TOKEN_FILE", tmp_path / "none")
    with pytest.raises(ConfigError, match="does not accept this machine's token"):
        probe.check_cluster(clusters[False], True)


@pytest.mark.parametrize(
    ("code", "message"), [(200, "has no token authentication"), (401, "does not accept"), (500, "did not show")]
)
def test_jobs_api_is_judged_by_its_answer_without_a_token(
    monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    class Dashboard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv(probe.DASHBOARD_VARIABLE, f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(probe, "is_loopback", lambda host: False)
        with pytest.raises(ConfigError, match=message):
            probe.check_dashboard(False, probe.BY_FLAG)
        server.shutdown()


def test_token_of_a_private_cluster_is_removed_after_its_driver_was_killed(tmp_path: Path) -> None:
    start = (
        "import time; from volley.cluster.on_ray import token as ray_token\n"
        "from volley.cluster.recipe.config import parse_recipe\n"
        "ray_token.prepare_token(parse_recipe({'name': 'n', 'model': 'm', 'steps': 1, 'data': {'train': 't'}}))\n"
        "from volley.cluster.on_ray import connection; connection._end_with_this_process()\n"
        "print(ray_token.own_token(), flush=True); time.sleep(60)"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with subprocess.Popen(
        [sys.executable, "-P", "-c", start],
        stdout=subprocess.PIPE,
        text=True,
        env={**kept, "HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
    ) as driver:
        assert driver.stdout is not None
        token = Path(driver.stdout.readline().strip())
        there = token.exists(), token.stat().st_mode & 0o777
        driver.kill()
    assert there == (True, 0o600)
    deadline = time.monotonic() + 30
    while token.parent.exists():
        assert time.monotonic() < deadline
        time.sleep(0.2)
