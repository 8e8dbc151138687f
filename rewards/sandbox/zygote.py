"""The process inside the sandbox that forks one child per program, and the way there.

    parent (`box`) -- launcher -- zygote, process 1 of its own world -- program, or program and tests

The interpreter and the modules that programs use are loaded once, before the door shuts. The zygote never reads a
program, an input or a test: they are in files without a name whose descriptors it hands on to fresh children. After
each job it kills every other process of its world. All of them die with the zygote, the zygote with the launcher, the
launcher with the thread of the parent that started it.
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
from typing import Any

from volley.rewards.sandbox import kernel, program, system_calls, trial

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
    """Entry point: arguments are the directory of the packages, the control socket's number, the parent's process id,
    the standard library's directory, and `namespaces`, or `bwrap` where that has made the walls already."""
    control = socket.socket(fileno=int(sys.argv[2]))
    parent, library, walls = int(sys.argv[3]), sys.argv[4], sys.argv[5]
    control.set_inheritable(False)
    try:
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))
        for name in PRELOADED.split():
            with contextlib.suppress(ImportError):  # a Python that was built without a library
                importlib.import_module(name)
        if walls == "namespaces":
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
            raise OSError("the processes of the sandbox are not in a world of their own")
        kernel.drop_privileges()
        abi = kernel.landlock(library)
        # Process 1 gets no signal from inside for which it has no handler.
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
    """Do one job: descriptors of program, input and output, or of program, tests and result. Leave at the end."""
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
    pid = _fork(job, job["case_s"], source, stdin, stdout, -1, lambda text, _: program.run_script(text))
    return _await(pid, pid, job["case_s"])


def _run_tests(job: dict[str, Any], files: Sequence[int]) -> dict[str, Any]:
    source, tests, result = files
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pid = _fork(job, job["all_s"], source, 0, 0, ours.fileno(), program.serve)

        def run(text: bytes, connection: socket.socket) -> int:
            verdicts = os.dup(1)
            os.dup2(2, 1)  # what a test prints is no verdict
            trial.run(trial.read_job(text), connection, pid, verdicts)
            return 0

        judge = _fork(job, job["all_s"], tests, 0, result, theirs.fileno(), run)
    return _await(judge, pid, job["all_s"])


def _fork(
    job: dict[str, Any],
    cpu_s: float,
    text: int,
    stdin: int,
    stdout: int,
    connection: int,
    run: Callable[[bytes, socket.socket], int],
) -> int:
    """Start a child that has the text of `text` and these descriptors, and nothing else; its process id."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        content = os.pread(text, os.fstat(text).st_size, 0)
        if connection >= 0:
            connection = os.dup2(connection, MAX_OPEN - 1, inheritable=False)
        program.redirect(stdin, stdout, 2, keep=connection)
        _limit(job, cpu_s)
        system_calls.restrict()
        random.seed(0)  # a response always gets the same score
        status = run(content, socket.socket(fileno=connection) if connection >= 0 else None)  # type: ignore[arg-type]
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
    """Wait for a child, within what `trial.wait_for` allows `worker`; then leave no process behind."""
    descriptor = os.pidfd_open(pid)
    ended = trial.wait_for(descriptor, worker, seconds)
    os.close(descriptor)
    # Those that have ended but are not waited for are found too, so there is always somebody.
    os.kill(-1, signal.SIGKILL)
    status = -1
    with contextlib.suppress(ChildProcessError):
        while True:
            found, state = os.wait()
            if found == pid:
                status = os.waitstatus_to_exitcode(state)
    return {"ended": ended, "status": status}
