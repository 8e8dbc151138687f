"""Two Ray nodes on this machine, each in its own network namespace, connected by a link that can be cut."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.cluster.leftovers import title_of
from tests.cluster.whole_run import environment
from volley.cluster.on_ray.token import write_token

RAY = str(Path(sys.executable).with_name("ray"))
PORT = 26479


class Node:
    """A network namespace with one end of the link and a Ray node. index: 1 is the head."""

    def __init__(self, index: int, variables: dict[str, str]) -> None:
        self.name, self.cable, self.address = f"volley{index}", f"vly{index}", f"10.213.77.{index}"
        self.around = ("ip", "netns", "exec", self.name)
        self.variables = variables

    def start(self, num_cpus: int, head: "Node | None" = None) -> None:
        """Start Ray; as the head if no head is given."""
        role = ["--head", f"--port={PORT}", "--include-dashboard=false"]
        if head is not None:
            role = [f"--address={head.address}:{PORT}"]
        resources = [f"--num-cpus={num_cpus}", "--object-store-memory=200000000", "--disable-usage-stats"]
        done = subprocess.run(
            [*self.around, RAY, "start", *role, f"--node-ip-address={self.address}", *resources],
            env={**environment(), **self.variables},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    @property
    def processes(self) -> list[psutil.Process]:
        """All processes in the namespace."""
        pids = ip("netns", "pids", self.name).split()
        found = []
        for pid in pids:
            with suppress(psutil.Error):
                found.append(psutil.Process(int(pid)))
        return found

    def find(self, *titles: str) -> list[psutil.Process]:
        return [each for each in self.processes if title_of(each).startswith(titles)]

    def raylet(self) -> psutil.Process:
        found = [each for each in self.processes if "raylet/raylet" in title_of(each).split(" ")[0]]
        assert len(found) == 1, [title_of(each)[:80] for each in self.processes]
        return found[0]

    def plug(self, state: str) -> None:
        """Set the state of this end of the link: "up" or "down"."""
        ip("-n", self.name, "link", "set", self.cable, state)

    def received_bytes(self) -> int:
        """Bytes received over the link so far."""
        fields = ip("-n", self.name, "-s", "-o", "link", "show", self.cable).split("RX:")[1].split("\\")[1].split()
        return int(fields[0])

    def end(self) -> None:
        """Kill all processes in the namespace and remove it. May be called again."""
        with suppress(OSError):
            for process in self.processes:
                with suppress(psutil.Error):
                    process.send_signal(signal.SIGKILL)
            ip("netns", "del", self.name)


def ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=20)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def two_nodes(directory: Path, cpus: tuple[int, int], rate: str = "") -> Iterator[tuple[Node, Node]]:
    """A head and a second node with these numbers of CPUs, and a link with at most `rate` ("30mbit"). Skips the test if
    the system does not permit network namespaces."""
    token = directory / "token"
    write_token(token)
    # How many missed health checks make a node dead to Ray: enough for a link that is restored.
    variables = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_health_check_failure_threshold": "10",
    }
    nodes = Node(1, variables), Node(2, variables)
    made: list[Node] = []
    try:
        try:
            for node in nodes:
                if node.name in ip("netns", "list"):
                    node.end()  # left over from a killed test session
                ip("netns", "add", node.name)
                made.append(node)
            ip("link", "add", nodes[0].cable, "netns", nodes[0].name, "type", "veth", "peer", "name", nodes[1].cable)
            ip("link", "set", nodes[1].cable, "netns", nodes[1].name)
            for node in nodes:
                ip("-n", node.name, "addr", "add", f"{node.address}/24", "dev", node.cable)
                ip("-n", node.name, "link", "set", "lo", "up")
                node.plug("up")
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"this system permits no network namespaces ({error})")
        if rate:
            shape = [
                "qdisc",
                "add",
                "dev",
                nodes[0].cable,
                "root",
                "tbf",
                "rate",
                rate,
                "burst",
                "64kb",
                "latency",
                "400ms",
            ]
            subprocess.run(["tc", "-n", nodes[0].name, *shape], check=True, timeout=20)
        nodes[0].start(cpus[0])
        nodes[1].start(cpus[1], nodes[0])
        yield nodes
    finally:
        for node in made:
            node.end()


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 120, every_s: float = 0.05) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(every_s)
