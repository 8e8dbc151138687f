"""The process inside the sandbox that forks one child per program.

    parent (`box`) -- launcher -- zygote, process 1 of its own namespace -- program, or program and tests

The interpreter and the modules that programs use are loaded once, before the isolation is set up. The zygote never
reads a program, an input or a test: they are in anonymous files whose descriptors it passes to new children. After each
job it kills every other process of its namespace. All of them die with the zygote, the zygote dies with the launcher,
and the launcher dies with the thread of the parent that started it.
"""

import contextlib
import gc
import importlib
import json
import math
import os
import platform
import random
import resource
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from volley.rewards.sandbox import harness, kernel, program, system_calls

MAX_HEADER = 4096
MAX_FILES = 3
STACK_BYTES = 64 << 20
MAX_OPEN = 64
MAX_THREADS = 64
PRELOADED = """abc array ast base64 bisect calendar cmath collections.abc contextlib copy csv dataclasses datetime
decimal enum fractions functools hashlib heapq inspect io itertools json math numbers operator os pprint queue random re
statistics string struct textwrap threading time traceback types typing unicodedata unittest uuid zlib bz2 lzma secrets
"""


def main() -> None:
    """Entry point. Arguments: the directory of the packages, the number of the control socket, the parent's process id,
    the directory of the standard library, and `namespaces`, or `bwrap` if bubblewrap has set up the isolation."""
    control = socket.socket(fileno=int(sys.argv[2]))
    parent, library, isolation = int(sys.argv[3]), sys.argv[4], sys.argv[5]
    control.set_inheritable(False)
    try:
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))
        for name in PRELOADED.split():
            with contextlib.suppress(ImportError):  # a Python that was built without this library
                importlib.import_module(name)
        if isolation == "namespaces":
            os.chdir(library)
            kernel.leave_root()
            kernel.enter_namespaces()
            if child := os.fork():
                control.close()
                kernel.die_with_parent(parent)
                os.waitpid(child, 0)
                os._exit(0)
            kernel.die_with_parent(0)
            os.setsid()
            kernel.enter_empty_root(library)
        if os.getpid() != 1:
            raise OSError("the sandbox is not in its own process namespace")
        kernel.drop_privileges()
        abi = kernel.landlock(library)
        # Process 1 gets no signals from inside its namespace for which it has no handler.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.environ.clear()
        sys.path[:] = [each for each in sys.path if each.startswith(library)]
        sys.argv[:] = ["program.py"]
        system_calls.filter_of(platform.machine())
        gc.collect()
        gc.freeze()
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        control.send(json.dumps({"failed": reason}).encode())
        os._exit(1)
    control.send(json.dumps({"landlock": abi}).encode())
    while True:
        _serve(control)


def _serve(control: socket.socket) -> None:
    """Do one job, with descriptors of program, input and output, or of program, tests and result. Exit at the end."""
    header, files, _, _ = socket.recv_fds(control, MAX_HEADER, MAX_FILES)
    if not header:
        os._exit(0)
    job = json.loads(header)
    reply = _run_script(job, files) if job["kind"] == "script" else _run_tests(job, files)
    for descriptor in files:
        os.close(descriptor)
    control.send(json.dumps(reply).encode())


def _run_script(job: dict[str, Any], files: Sequence[int]) -> dict[str, Any]:
    source, stdin, stdout = files
    child = Child(source, stdin, stdout, cpu_s=job["case_s"], run=lambda text, _: program.run_script(text))
    pid = _fork(job, child)
    return _await(pid, pid, job["case_s"])


def _run_tests(job: dict[str, Any], files: Sequence[int]) -> dict[str, Any]:
    source, tests, result = files
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pid = _fork(job, Child(source, 0, 0, cpu_s=job["all_s"], run=program.serve, connection=ours.fileno()))

        def run(text: bytes, connection: socket.socket) -> int:
            verdicts = os.dup(1)
            os.dup2(2, 1)  # output of a test must not be taken for a verdict
            harness.run(harness.read_job(text), connection, pid, verdicts)
            return 0

        tester = _fork(job, Child(tests, 0, result, cpu_s=job["all_s"], run=run, connection=theirs.fileno()))
    return _await(tester, pid, job["all_s"])


@dataclass(frozen=True)
class Child:
    """A process to fork. It has these descriptors and no others."""

    text: int
    """Descriptor of the file with the program or the tests."""
    stdin: int
    stdout: int
    cpu_s: float
    """Processor time limit in seconds."""
    run: Callable[[bytes, socket.socket], int]
    """Called with the text and the connection; returns the exit status."""
    connection: int = -1
    """Descriptor of the socket between program and tests; -1 for none."""


def _fork(job: dict[str, Any], child: Child) -> int:
    """Start a child; returns its process id."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        content = os.pread(child.text, os.fstat(child.text).st_size, 0)
        connection = child.connection
        if connection >= 0:
            connection = os.dup2(connection, MAX_OPEN - 1, inheritable=False)
        program.redirect(child.stdin, child.stdout, 2, keep=connection)
        _limit(job, child.cpu_s)
        system_calls.restrict()
        random.seed(0)  # reproducible scores
        open_socket = socket.socket(fileno=connection) if connection >= 0 else None
        status = child.run(content, open_socket)  # type: ignore[arg-type]
    finally:
        os._exit(status)


def _limit(job: dict[str, Any], cpu_s: float) -> None:
    limits = {
        resource.RLIMIT_AS: job["memory_bytes"],
        resource.RLIMIT_CPU: math.ceil(cpu_s) + 1,
        resource.RLIMIT_FSIZE: job["output_bytes"],
        resource.RLIMIT_STACK: STACK_BYTES,
        resource.RLIMIT_NOFILE: MAX_OPEN,
        resource.RLIMIT_NPROC: MAX_THREADS,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for which, limit in limits.items():
        _, hard = resource.getrlimit(which)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(which, (limit, limit))


def _await(pid: int, worker: int, seconds: float) -> dict[str, Any]:
    """Wait for a child within the time limit of `worker` (see `harness.wait_for`), then kill all other processes."""
    descriptor = os.pidfd_open(pid)
    ended = harness.wait_for(descriptor, worker, seconds)
    os.close(descriptor)
    # This never fails: processes that have ended but were not waited for count, too.
    os.kill(-1, signal.SIGKILL)
    status = -1
    with contextlib.suppress(ChildProcessError):
        while True:
            ended_pid, state = os.wait()
            if ended_pid == pid:
                status = os.waitstatus_to_exitcode(state)
    return {"ended": ended, "status": status}
