"""The door to the sandbox: a process of its own that runs programs, and proves first that it can hold them.

    sandbox = shared()                                    one for each process, started and tested at the first call
    sandbox.run_script(program, stdin, limits)            -> Script(ended, status, output)
    sandbox.run_tests(program, job, limits)               -> one character for each test that was come to

The walls are bubblewrap's where that is installed, else our own namespaces (`kernel`); inside them a
filter of system calls, Landlock where the kernel has it, and limits. Where neither holds, nothing is run.

A program may read the files of Python's standard library and its input, and write its output (within bubblewrap and
without Landlock it may read the system's libraries too). It has no environment, network, other processes or files. It
is limited in processor and wall time, address space, output, threads and open files. What is left to it: to compute, to
guess, and to use a bug of the kernel in one of the calls it may make.
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
# Nothing of ours; and sets are in the same order in every run, so that a response always gets the same score.
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}


class Sandbox:
    """One zygote with its walls; started by the first call and again whenever it is gone. For any thread, one call at a
    time. Raises RewardError where this system cannot hold a program."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self.walls = ""

    @property
    def pid(self) -> int:
        """Of the launcher; 0 while there is none."""
        return self._process.pid if self._process else 0

    def run_script(self, program: bytes, stdin: bytes, limits: Limits) -> Script:
        reply, output = self._do("script", program, stdin, limits, 2 * limits.case_s)
        return Script(reply["ended"], reply["status"], output)

    def run_tests(self, program: bytes, job: dict[str, Any], limits: Limits) -> str:
        """job: see `run`, less its time limit. Returns "1" passed, "0" failed, "?" unusable for
        each test; one that ended the program is the last."""
        tests = json.dumps(job | {"case_s": limits.case_s}).encode()
        _, output = self._do("tests", program, tests, limits, 2 * limits.all_s)
        return output.decode("ascii", "replace")

    def start(self) -> None:
        """Start and prove that the walls hold, unless that is done. Raises RewardError."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                return
            reasons = []
            for walls, command in _commands():
                try:
                    self._start(command)
                    check_isolation(self.run_job)
                    self.walls = walls
                    return
                except (OSError, ValueError) as error:
                    self.close()
                    reasons.append(f"{walls}: {error}")
                except BaseException:
                    self.close()  # or its greeting would be taken for the answer to the first job
                    raise
            raise RewardError(
                f"reward 'code': this system cannot hold a hostile program ({'; '.join(reasons)}); allow user "
                "namespaces or install bubblewrap, or leave the reward out."
            )

    def close(self) -> None:
        """End the zygote and whatever runs in it."""
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
        news = ours.recv(MAX_REPLY)
        if not news:
            raise OSError("its process ends at once")
        if "failed" in (message := json.loads(news)):
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
                    self.close()  # or the answer that was not waited for would be taken for the next one
                    raise
        raise AssertionError("unreachable")

    def run_job(
        self, kind: str, first: bytes, second: bytes, limits: Limits, wall_s: float
    ) -> tuple[dict[str, Any], bytes]:
        """Have the running zygote do one job. Raises OSError where it is gone or silent."""
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
    """Without moving the offset, which all who hold the descriptor share."""
    written = 0
    while written < len(content):
        written += os.pwrite(descriptor, content[written:], written)


def _commands() -> list[tuple[str, Callable[[int], list[str]]]]:
    """The ways to start a zygote, the preferred one first."""
    library = os.path.realpath(sysconfig.get_path("stdlib"))
    root = str(Path(volley.__file__).parent.parent)
    interpreter = os.path.realpath(sys.executable)

    def start(walls: str, descriptor: int) -> list[str]:
        options = ["-S", "-s", "-P", "-B", "-c", _BOOT]
        return [interpreter, *options, root, str(descriptor), str(os.getpid()), library, walls]

    def bubblewrap(descriptor: int) -> list[str]:
        return [str(installed), *_bubblewrap(library, interpreter, root), *start("bwrap", descriptor)]

    own: tuple[str, Callable[[int], list[str]]] = ("namespaces", lambda descriptor: start("namespaces", descriptor))
    if (installed := shutil.which("bwrap")) is None:
        return [own]
    ways = [("bwrap", bubblewrap), own]
    # Started by root, bubblewrap's world still belongs to root outside; ours does not.
    return ways[::-1] if os.geteuid() == 0 else ways


def _bubblewrap(library: str, interpreter: str, root: str) -> list[str]:
    """Options of bubblewrap: the interpreter, the system's libraries and the zygote's own code, all read-only."""
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
    """This process's sandbox. A process that was forked gets its own."""
    global _shared
    with _shared_lock:
        if _shared is None or _shared[0] != os.getpid():
            _shared = (os.getpid(), Sandbox())
        return _shared[1]
