"""The proof that the sandbox holds on this system: a program inside tries what it must not be able to do.

Run at each start, in some milliseconds. A sandbox in which one attempt works is not used.
"""

import os
import socket
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from volley.rewards.sandbox.box import Sandbox

MEMORY_BYTES = 256 << 20
BRIEF_S = 0.05

# Reads what to try from its input, prints the names of all attempts that worked, and then that it came to the end. What
# it must be able to do is to load a module that nothing has loaded before, and to start a thread.
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
        raise OSError  # the same number here means another process
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
thread = threading.Thread(target=print, args=("that was all",))
thread.start()
thread.join()
"""


def prove(sandbox: "Sandbox") -> None:
    """Raises OSError with what a program in this sandbox, which has just been started, can do and must not."""
    from volley.rewards.sandbox.box import Limits

    limits = Limits(case_s=2.0, memory_bytes=MEMORY_BYTES)
    with tempfile.NamedTemporaryFile() as file, socket.create_server(("127.0.0.1", 0)) as listener:
        os.fchmod(file.fileno(), 0o644)
        told = f"{file.name} {listener.getsockname()[1]} {os.getpid()} {2 * MEMORY_BYTES}".encode()
        _, output = sandbox.ask("script", PROBE.encode(), told, limits, 2 * limits.case_s)
    said = output.decode().strip().splitlines()
    if said != ["that was all"]:
        raise OSError("a program in it says: " + (", ".join(said[:3]) or "nothing at all"))
    brief = Limits(case_s=BRIEF_S)
    reply, _ = sandbox.ask("script", b"while True: pass", b"", brief, 2 * brief.case_s)
    if reply["ended"]:
        raise OSError("a program without end is not stopped")
