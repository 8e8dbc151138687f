"""The self-test of the sandbox: a program inside attempts everything that must be impossible.

It runs at every start and takes a few milliseconds. A sandbox in which any attempt succeeds is not used.
"""

import os
import socket
import tempfile
from collections.abc import Callable
from typing import Any

from volley.rewards.sandbox.types import Limits

MEMORY_BYTES = 256 << 20
BRIEF_S = 0.05

# Reads its targets from standard input, prints the name of each attempt that succeeded, and then a final line. Loading
# a new module and starting a thread must work.
PROBE = """
import ctypes, os, resource, socket, sys, threading
path, port, pid, too_much = sys.stdin.read().split()
libc = ctypes.CDLL(None, use_errno=True)
def connect(kind, address):
    with socket.socket(kind, socket.SOCK_STREAM) as connection:
        connection.settimeout(1)
        connection.connect(address)
def udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("127.0.0.1", int(port)))
def call(function, *arguments):
    if getattr(libc, function)(*arguments) < 0:
        raise OSError
def listing(path):
    if not os.listdir(path):
        raise OSError
def environment():
    if not os.environ:
        raise OSError
def process():
    if not os.fork():
        os._exit(0)
def signal():
    if os.getpid() == int(pid) or os.getppid() == int(pid):
        raise OSError  # inside, this number is another process
    os.kill(int(pid), 0)
def memory():
    bytearray(int(too_much))
def threads():
    threading.stack_size(65536)
    done, started = threading.Event(), []
    try:
        for _ in range(100):
            started.append(threading.Thread(target=done.wait))
            started[-1].start()
    finally:
        done.set()
        for thread in started[:-1]:
            thread.join()
def program():
    os.execv(sys.executable, [sys.executable, "-c", "print('program')"])
attempts = {
    "read a file": lambda: open(path),
    "read /etc/passwd": lambda: open("/etc/passwd"),
    "see a process": lambda: open(f"/proc/{pid}/environ"),
    "see /proc": lambda: listing("/proc"),
    "see devices": lambda: listing("/dev"),
    "write to /": lambda: open("/written", "w"),
    "write to /tmp": lambda: open("/tmp/written", "w"),
    "write to the library": lambda: open(os.__file__ + "x", "w"),
    "connect": lambda: connect(socket.AF_INET, ("127.0.0.1", int(port))),
    "send": udp,
    "connect by a file": lambda: connect(socket.AF_UNIX, "/run/probe"),
    "signal a process outside": signal,
    "start a process": process,
    "start a program": program,
    "read an environment": environment,
    "take memory": memory,
    "start many threads": threads,
    "trace": lambda: call("ptrace", 0, 0, 0, 0),
    "make a namespace": lambda: call("unshare", 0x10000000),
    "mount": lambda: call("mount", b"tmpfs", b"/", b"tmpfs", 0, None),
    "limit others": lambda: resource.prlimit(1, resource.RLIMIT_CPU),
    "make a file in memory": lambda: os.memfd_create("x"),
}
for name, attempt in attempts.items():
    try:
        attempt()
    except (OSError, MemoryError, ValueError, RuntimeError):
        continue
    print("it can " + name, flush=True)
import colorsys
thread = threading.Thread(target=print, args=("all attempts done",))
thread.start()
thread.join()
"""


def check_isolation(run_job: Callable[[str, bytes, bytes, Limits, float], tuple[dict[str, Any], bytes]]) -> None:
    """Raises OSError that lists what a program in a newly started sandbox can do although it must not.

    run_job: `Sandbox.run_job`.
    """
    limits = Limits(case_s=2.0, memory_bytes=MEMORY_BYTES)
    with tempfile.NamedTemporaryFile() as file, socket.create_server(("127.0.0.1", 0)) as listener:
        os.fchmod(file.fileno(), 0o644)
        targets = f"{file.name} {listener.getsockname()[1]} {os.getpid()} {2 * MEMORY_BYTES}".encode()
        _, output = run_job("script", PROBE.encode(), targets, limits, 2 * limits.case_s)
    lines = output.decode().strip().splitlines()
    if lines != ["all attempts done"]:
        raise OSError("a probe inside the sandbox reports: " + (", ".join(lines[:3]) or "nothing at all"))
    brief = Limits(case_s=BRIEF_S)
    reply, _ = run_job("script", b"while True: pass", b"", brief, 2 * brief.case_s)
    if reply["ended"]:
        raise OSError("an endless program is not stopped")
