"""The sandbox: a separate process that runs untrusted programs, after a self-test of its isolation.

    sandbox = shared()                                    one per process, started and tested at the first call
    sandbox.run_script(program, stdin, limits)            -> Script(ended, status, output)
    sandbox.run_tests(program, job, limits)               -> one character for each test that was run

The isolation is that of bubblewrap if it is installed, else namespaces of our own (`kernel`). Both are combined with a
filter of system calls, Landlock if the kernel has it, and resource limits. If neither works, nothing is run.

A program can read the files of Python's standard library and its input, and write its output. With bubblewrap and
without Landlock it can also read the system's libraries. It has no environment, network, other processes or files. It
is limited in processor time, wall-clock time, address space, output, threads and open files. It can still compute,
guess, and exploit a kernel bug in one of the system calls that it may use.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import volley
from volley.rewards.sandbox.probes import check_isolation
from volley.rewards.sandbox.types import Limits, Script
from volley.rollout.errors import RewardError

START_TIMEOUT_S = 20.0
GRACE_S = 5.0
MAX_REPLY = 4096
_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from volley.rewards.sandbox.zygote import main; main()"
# Nothing is inherited. A fixed hash seed gives sets the same order in every run, so scores are reproducible.
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}


class Sandbox:
    """One isolated zygote process, started by the first call and restarted whenever it is gone.

    It may be used from any thread; calls run one at a time. Raises RewardError if no isolation works on this system.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self.isolation = ""
        """The isolation in use: `bwrap` or `namespaces`."""

    @property
    def pid(self) -> int:
        """The process id of the launcher; 0 if it is not running."""
        return self._process.pid if self._process else 0

    def run_script(self, program: bytes, stdin: bytes, limits: Limits) -> Script:
        """Run a program as a script with this input."""
        reply, output = self._do("script", program, stdin, limits, 2 * limits.case_s)
        return Script(reply["ended"], reply["status"], output)

    def run_tests(self, program: bytes, job: dict[str, Any], limits: Limits) -> str:
        """Run tests against a program. Returns "1" (passed), "0" (failed) or "?" (unusable) for each test that was run.

        A test that ended the program is the last one. job: see `harness.run`, without `case_s`.
        """
        tests = json.dumps(job | {"case_s": limits.case_s}).encode()
        _, output = self._do("tests", program, tests, limits, 2 * limits.all_s)
        return output.decode("ascii", "replace")

    def start(self) -> None:
        """Start the zygote and test its isolation, unless it is running. Raises RewardError."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                return
            reasons = []
            for isolation, command in _commands():
                try:
                    self._start(command)
                    check_isolation(self.run_job)
                    self.isolation = isolation
                    return
                except (OSError, ValueError) as error:
                    self.close()
                    reasons.append(f"{isolation}: {error}")
                except BaseException:
                    self.close()  # or its first message would be taken for the reply to the first job
                    raise
            raise RewardError(
                f"reward 'code': no sandbox works on this system ({'; '.join(reasons)}); allow user "
                "namespaces or install bubblewrap, or remove the reward."
            )

    def close(self) -> None:
        """Kill the zygote and everything that runs in it."""
        with self._lock:
            if self._control is not None:
                self._control.close()
            if self._process is not None:
                self._process.kill()
                self._process.wait()
            self._process = self._control = None

    def _start(self, command: Callable[[int], list[str]]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(START_TIMEOUT_S)
        self._control = ours
        with theirs:
            self._process = subprocess.Popen(
                command(theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=_ENVIRONMENT,
                cwd="/",
            )
        status = ours.recv(MAX_REPLY)
        if not status:
            raise OSError("its process exits immediately")
        if "failed" in (message := json.loads(status)):
            raise OSError(message["failed"])

    def _do(
        self, kind: str, first: bytes, second: bytes, limits: Limits, wall_s: float
    ) -> tuple[dict[str, Any], bytes]:
        with self._lock:
            for is_last in (False, True):
                self.start()
                try:
                    return self.run_job(kind, first, second, limits, wall_s)
                except OSError as error:
                    self.close()
                    if is_last:
                        raise RuntimeError(f"the sandbox is gone ({error})") from error
                except BaseException:
                    self.close()  # or the reply to this job would be taken for that to the next one
                    raise
        raise AssertionError("unreachable")

    def run_job(
        self, kind: str, first: bytes, second: bytes, limits: Limits, wall_s: float
    ) -> tuple[dict[str, Any], bytes]:
        """Send one job to the running zygote. Raises OSError if it is gone or does not reply."""
        assert self._control is not None
        files = [os.memfd_create(name) for name in ("first", "second", "output")]
        try:
            for descriptor, content in zip(files, (first, second), strict=False):
                _write(descriptor, content)
            self._control.settimeout(wall_s + GRACE_S)
            socket.send_fds(self._control, [json.dumps({"kind": kind, **asdict(limits)}).encode()], files)
            reply = self._control.recv(MAX_REPLY)
            if not reply:
                raise OSError("its process has ended")
            return json.loads(reply), os.pread(files[2], limits.output_bytes, 0)
        finally:
            for descriptor in files:
                os.close(descriptor)


def _write(descriptor: int, content: bytes) -> None:
    """Write without moving the offset, which is shared by all processes that hold the descriptor."""
    written = 0
    while written < len(content):
        written += os.pwrite(descriptor, content[written:], written)


def _commands() -> list[tuple[str, Callable[[int], list[str]]]]:
    """The available kinds of isolation with the commands that start a zygote, preferred one first."""
    library = os.path.realpath(sysconfig.get_path("stdlib"))
    root = str(Path(volley.__file__).parent.parent)
    interpreter = os.path.realpath(sys.executable)

    def start(isolation: str, descriptor: int) -> list[str]:
        options = ["-S", "-s", "-P", "-B", "-c", _BOOT]
        return [interpreter, *options, root, str(descriptor), str(os.getpid()), library, isolation]

    def bubblewrap(descriptor: int) -> list[str]:
        return [str(installed), *_bubblewrap(library, interpreter, root), *start("bwrap", descriptor)]

    own: tuple[str, Callable[[int], list[str]]] = ("namespaces", lambda descriptor: start("namespaces", descriptor))
    if (installed := shutil.which("bwrap")) is None:
        return [own]
    ways = [("bwrap", bubblewrap), own]
    # If root starts it, processes in bubblewrap are still root outside; in our own namespaces they are not.
    return ways[::-1] if os.geteuid() == 0 else ways


def _bubblewrap(library: str, interpreter: str, root: str) -> list[str]:
    """Options of bubblewrap: mount the interpreter, the system's libraries and the zygote's code, all read-only."""
    command = ["--unshare-all", "--as-pid-1", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    for place in ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache", f"{sys.base_prefix}/lib"):
        command += ["--ro-bind-try", place, place]
    for place in (interpreter, library):
        command += ["--ro-bind", place, place]
    # In a checkout volley/rewards is a link; inside it is a plain directory.
    for place in ("volley/__init__.py", "volley/rewards/__init__.py", "volley/rewards/sandbox"):
        command += ["--ro-bind", os.path.realpath(f"{root}/{place}"), f"{root}/{place}"]
    for place in ("site-packages", "dist-packages"):
        if os.path.isdir(f"{library}/{place}"):
            command += ["--tmpfs", f"{library}/{place}"]
    return [*command, "--remount-ro", "/", "--chdir", "/", "--"]


_shared: tuple[int, Sandbox] | None = None
_shared_lock = threading.Lock()


def shared() -> Sandbox:
    """The sandbox of this process. A forked process gets its own."""
    global _shared
    with _shared_lock:
        if _shared is None or _shared[0] != os.getpid():
            _shared = (os.getpid(), Sandbox())
        return _shared[1]
