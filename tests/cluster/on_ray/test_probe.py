"""The probe against servers that answer as Ray's do (as a real head does: test_submit.py), and the token of a private
cluster. No Ray is started."""

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

from volley.cluster.on_ray import probe as ray_probe
from volley.rollout.errors import ConfigError

TOKEN = "the right one"


class Gcs(grpc.GenericRpcHandler):
    """Answers every call, with `is_open` also a stranger's."""

    def __init__(self, is_open: bool) -> None:
        self._is_open = is_open

    def service(self, details: Any) -> Any:
        def answer(request: bytes, context: Any) -> bytes:
            if not self._is_open and dict(context.invocation_metadata()).get("authorization") != f"Bearer {TOKEN}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")
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


def test_a_cluster_is_judged_by_what_it_answers_a_stranger(
    clusters: dict[bool, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ray_probe.check_cluster(clusters[False], False) == clusters[False]
    # Only this machine reaches it; elsewhere it is refused, with a token or without.
    assert ray_probe.check_cluster(clusters[True], False) == clusters[True]
    monkeypatch.setattr(ray_probe, "is_loopback", lambda host: False)
    assert ray_probe.check_cluster(clusters[False], False) == clusters[False]
    monkeypatch.setenv("RAY_ADDRESS", clusters[True])
    for address in (clusters[True], "auto"):
        with pytest.raises(ConfigError, match=r"asks nobody for a token.*add --allow-unauthenticated"):
            ray_probe.check_cluster(address, False, ray_probe.BY_FLAG)
    assert ray_probe.check_cluster("auto", True) == clusters[True]


@pytest.mark.parametrize("token", ["", "another"])
def test_another_token_or_none_is_refused_also_where_open_ones_are_allowed(
    clusters: dict[bool, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    monkeypatch.setattr("volley.cluster.on_ray.token.TOKEN_FILE", tmp_path / "none")
    with pytest.raises(ConfigError, match="does not take this machine's token"):
        ray_probe.check_cluster(clusters[False], True)


@pytest.mark.parametrize(("code", "said"), [(200, "asks nobody"), (401, "does not take"), (500, "did not say")])
def test_the_jobs_api_is_judged_likewise(monkeypatch: pytest.MonkeyPatch, code: int, said: str) -> None:
    class Dashboard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv(ray_probe.DASHBOARD_VARIABLE, f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(ray_probe, "is_loopback", lambda host: False)
        with pytest.raises(ConfigError, match=said):
            ray_probe.check_dashboard(False, ray_probe.BY_FLAG)
        server.shutdown()


def test_the_token_of_a_private_cluster_is_gone_after_a_killed_driver(tmp_path: Path) -> None:
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
