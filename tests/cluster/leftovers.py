"""What a run leaves on the machine: processes, listening sockets, shared memory. For the tests here.

A process is the run's by a variable in its environment, by its working directory, or by its parents: Ray and vLLM write
their titles over their environment, and a daemon may have lost its parents. Sockets are known by inode, so that a port
that somebody else takes later is no leftover.
"""

import os
import uuid
from contextlib import suppress
from pathlib import Path

import psutil

MARK = "VOLLEY_TEST_RUN"
SHARED_MEMORY = Path("/dev/shm")


class Traces:
    """Of one run, gathered while it lives. directory: that all its processes work in or below, and nobody else.
    variables: to start it with. family: every process it was seen to have."""

    def __init__(self, directory: Path) -> None:
        self.variables = {MARK: uuid.uuid4().hex}
        self.family: dict[int, psutil.Process] = {}
        self._mark = f"{MARK}={self.variables[MARK]}".encode()
        self._directory = str(directory.resolve())
        self._sockets: set[str] = set()
        self._segments: set[str] = set()
        self._segments_before = set(os.listdir(SHARED_MEMORY))

    def look(self) -> None:
        """Remember what the run has now."""
        parents, known = {}, {process.pid for process in self.alive()}
        there = {process.pid: process for process in psutil.process_iter()}
        for pid, process in there.items():
            with suppress(OSError, psutil.Error):
                parents[pid] = process.ppid()
                if self._is_marked(pid):
                    known.add(pid)
        while new := {pid for pid, parent in parents.items() if parent in known and pid not in known}:
            known |= new
        for pid in known:
            if pid in there and not (pid in self.family and self.family[pid].is_running()):
                self.family[pid] = there[pid]

    def _is_marked(self, pid: int) -> bool:
        with suppress(OSError):
            works_in = os.readlink(f"/proc/{pid}/cwd")
            if works_in == self._directory or works_in.startswith(f"{self._directory}/"):
                return True
        return self._mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")

    def look_closely(self) -> None:
        """As `look`, and at the processes' sockets and segments; slower."""
        self.look()
        listening = listening_sockets()
        for process in self.alive():
            held = held_by(process.pid)
            self._sockets |= held & set(listening)
            self._segments |= {each for each in held if each.startswith(f"{SHARED_MEMORY}/")}

    def alive(self) -> list[psutil.Process]:
        found = []
        for process in self.family.values():
            with suppress(psutil.Error):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def left(self) -> list[str]:
        """What is there still, in words. New segments are the run's unless another process holds them."""
        self.look()
        found = [f"process {process.pid} {title_of(process)[:100]}" for process in self.alive()]
        found += [f"listening at {where}" for inode, where in listening_sockets().items() if inode in self._sockets]
        there = {f"{SHARED_MEMORY}/{name}" for name in os.listdir(SHARED_MEMORY)}
        new = there - {f"{SHARED_MEMORY}/{name}" for name in self._segments_before}
        if new - self._segments:
            for pid in psutil.pids():
                new -= held_by(pid) - self._segments
        return found + [f"segment {name}" for name in sorted(new)]


def listening_sockets() -> dict[str, str]:
    """{inode as /proc names it: local address} of all TCP sockets that listen."""
    found = {}
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A":
                    found[f"socket:[{fields[9]}]"] = fields[1]
    return found


def held_by(pid: int) -> set[str]:
    """Sockets and segments of shared memory that a process has open or mapped."""
    found = set()
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                found.add(os.readlink(entry.path))
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if f"{SHARED_MEMORY}/" in line:
                found.add(line[line.index(f"{SHARED_MEMORY}/") :])
    return {each for each in found if each.startswith(("socket:[", f"{SHARED_MEMORY}/"))}


def title_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
