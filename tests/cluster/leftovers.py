"""Find what a run leaves behind on the machine: processes, listening sockets and shared memory.

A process belongs to a run if it has the run's environment variable, its working directory, or an ancestor in the run.
All three are needed: Ray and vLLM overwrite their environment with their titles, and daemons lose their parents.
Sockets are identified by inode, because another process may reuse a port later.
"""

import os
import uuid
from contextlib import suppress
from pathlib import Path

import psutil

VARIABLE = "VOLLEY_TEST_RUN"
SHARED_MEMORY = Path("/dev/shm")


class ResourceTracker:
    """Tracks the resources of one run while it is alive."""

    def __init__(self, directory: Path) -> None:
        """directory: the working directory of the run; its processes run in it or below, and no others do."""
        self.variables = {VARIABLE: uuid.uuid4().hex}
        """Environment variables to start the run with."""
        self.processes: dict[int, psutil.Process] = {}
        """All processes of the run that were observed."""
        self._entry = f"{VARIABLE}={self.variables[VARIABLE]}".encode()
        self._directory = str(directory.resolve())
        self._sockets: set[str] = set()
        self._segments: set[str] = set()
        self._segments_before = set(os.listdir(SHARED_MEMORY))

    def update(self) -> None:
        """Record the current processes of the run."""
        parents, known = {}, {process.pid for process in self.alive()}
        current = {process.pid: process for process in psutil.process_iter()}
        for pid, process in current.items():
            with suppress(OSError, psutil.Error):
                parents[pid] = process.ppid()
                if self._is_own(pid):
                    known.add(pid)
        while new := {pid for pid, parent in parents.items() if parent in known and pid not in known}:
            known |= new
        for pid in known:
            if pid in current and not (pid in self.processes and self.processes[pid].is_running()):
                self.processes[pid] = current[pid]

    def _is_own(self, pid: int) -> bool:
        with suppress(OSError):
            directory = os.readlink(f"/proc/{pid}/cwd")
            if directory == self._directory or directory.startswith(f"{self._directory}/"):
                return True
        return self._entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")

    def update_all(self) -> None:
        """Record processes, sockets and shared memory; slower than `update`."""
        self.update()
        listening = listening_sockets()
        for process in self.alive():
            held = held_by(process.pid)
            self._sockets |= held & set(listening)
            self._segments |= {each for each in held if each.startswith(f"{SHARED_MEMORY}/")}

    def alive(self) -> list[psutil.Process]:
        found = []
        for process in self.processes.values():
            with suppress(psutil.Error):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def remaining(self) -> list[str]:
        """Describe what still exists. New shared memory belongs to the run unless another process uses it."""
        self.update()
        found = [f"process {process.pid} {title_of(process)[:100]}" for process in self.alive()]
        found += [f"listening at {where}" for inode, where in listening_sockets().items() if inode in self._sockets]
        segments = {f"{SHARED_MEMORY}/{name}" for name in os.listdir(SHARED_MEMORY)}
        new = segments - {f"{SHARED_MEMORY}/{name}" for name in self._segments_before}
        if new - self._segments:
            for pid in psutil.pids():
                new -= held_by(pid) - self._segments
        return found + [f"segment {name}" for name in sorted(new)]


def listening_sockets() -> dict[str, str]:
    """All listening TCP sockets: inode in the format of /proc -> local address."""
    found = {}
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A":
                    found[f"socket:[{fields[9]}]"] = fields[1]
    return found


def held_by(pid: int) -> set[str]:
    """Sockets and shared memory segments that a process has open or mapped."""
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
