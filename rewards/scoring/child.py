"""The program of a scoring child: loads the rewards, then computes terms of items until its socket closes.

Messages are JSON behind a length of four bytes, big-endian; nothing is ever unpickled.

    to the child    {"terms", "columns", "path", "cpu_s", "memory_bytes", "network"}             once
                    [[term, ...], [read] or null, prompt, response, answer, num_tokens, truncated, row]  each item
    from the child  ["loading", reward name], ["alive"], then ["ready"] or ["failed", message]
                    [term, value or null, error, seconds, leaving]                               each term, in order

The child dies with its parent, cannot take more memory or processor time than allowed, has no network unless a function
of the user's may want it, and never writes to the parent's standard output: whatever a reward prints goes to standard
error. It is no sandbox for hostile code; a reward is the user's own, only the text that it reads is not.
"""

import ctypes
import json
import math
import os
import resource
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from volley.rewards.code import verifier as code
from volley.rewards.config import RewardConfig
from volley.rewards.item import Item
from volley.rewards.math import verifier as math_reward
from volley.rewards.scoring.rubric import Reading, Rubric
from volley.rollout.errors import VolleyError

_JSON = json.JSONEncoder(separators=(",", ":"))
LENGTH = struct.Struct(">I")
ALIVE_EVERY_S = 0.5
PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000


class _Event(ctypes.Structure):
    """`struct sigevent`: what a timer does when it expires. notify: 0 is to send the signal."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("_", ctypes.c_char * 48),
    )


class _Spans(ctypes.Structure):
    """`struct itimerspec`: seconds and nanoseconds of the interval, and until the timer expires."""

    _fields_ = (("interval", ctypes.c_long * 2), ("value", ctypes.c_long * 2))


def encode(message: Any) -> bytes:
    """A message with its length. Raises TypeError for what JSON cannot hold."""
    body = _JSON.encode(message).encode()
    return LENGTH.pack(len(body)) + body


def decode(buffer: bytearray) -> Iterator[Any]:
    """The whole messages at the start of `buffer`, which loses them."""
    while len(buffer) >= LENGTH.size:
        end = LENGTH.size + LENGTH.unpack_from(buffer)[0]
        if len(buffer) < end:
            return
        body = bytes(buffer[LENGTH.size : end])
        del buffer[:end]
        yield json.loads(body)


def messages(connection: socket.socket) -> Iterator[Any]:
    """What arrives, until the other side closes."""
    buffer = bytearray()
    while chunk := connection.recv(1 << 18):
        buffer += chunk
        yield from decode(buffer)


def main() -> None:
    """Entry point: arguments are the directory of the packages, the socket's number and the parent's process id."""
    _die_with(int(sys.argv[3]))
    # Whoever stops a run politely signals all of its processes; the step that is to be finished still needs scores.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[2])) as connection:
        connection.set_inheritable(False)
        incoming = messages(connection)
        setup = next(incoming)
        sys.path += [entry for entry in setup["path"] if entry not in sys.path]
        rubric = _load(connection, setup)
        if rubric is None:
            return
        if not setup["network"]:
            _leave_network()
            _die_with(int(sys.argv[3]))  # which a change of namespaces may undo
        _limit_memory(setup["memory_bytes"])
        limit_processor_time = _processor_time_limit(setup["cpu_s"])
        connection.sendall(encode(["ready"]))
        for terms, read, *fields in incoming:
            limit_processor_time()
            if not _work(connection, rubric, terms, Item(*fields), Reading(*read) if read else None):
                return


def _load(connection: socket.socket, setup: dict[str, Any]) -> Rubric | None:
    """The rubric with all rewards imported; None once the parent has been told why it cannot be."""
    lock = threading.Lock()

    def tell(*message: str) -> None:
        with lock:
            connection.sendall(encode(message))

    try:
        rubric = Rubric([RewardConfig(**term) for term in setup["terms"]])
        with _signs_of_life(tell):
            rubric.load(setup["columns"], lambda name: tell("loading", name))
            if any(term.name == "code" for term in rubric.terms):
                code.warm_up()
    except VolleyError as error:
        tell("failed", str(error))
        return None
    if any(term.name == "math" for term in rubric.terms):
        math_reward.warm_up()
    return rubric


@contextmanager
def _signs_of_life(tell: Callable[..., None]) -> Iterator[None]:
    """Tells the parent whenever modules have been imported since the last time: slow is not stuck."""
    done = threading.Event()

    def watch() -> None:
        before = len(sys.modules)
        while not done.wait(ALIVE_EVERY_S):
            if len(sys.modules) != before:
                before = len(sys.modules)
                tell("alive")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _work(connection: socket.socket, rubric: Rubric, terms: list[int], item: Item, reading: Reading | None) -> bool:
    """Compute an item, answering term by term. False when memory has run out: the process must be replaced."""
    for term in terms:
        outcome = rubric.compute(term, item, reading)
        value = None if math.isnan(outcome.value) else outcome.value
        leaving = "raised MemoryError" in outcome.error
        connection.sendall(encode([term, value, outcome.error, outcome.seconds, leaving]))
        if leaving:
            return False
    return True


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit()


def _leave_network() -> None:
    """Into a network namespace where there is nothing, as root or in a user namespace that keeps our ids. Where the
    system forbids both, or this process has threads, the network stays."""
    if sys.platform != "linux":
        return
    libc, ids = ctypes.CDLL(None), {"uid_map": os.getuid(), "gid_map": os.getgid()}
    if libc.unshare(CLONE_NEWNET) == 0 or libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        return
    with suppress(OSError):
        Path("/proc/self/setgroups").write_text("deny")
        for name, number in ids.items():
            Path(f"/proc/self/{name}").write_text(f"{number} {number} 1")


def _limit_memory(allowance: int) -> None:
    """Bound the address space to what it is now, with all rewards loaded, and `allowance` bytes more."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = now + allowance if hard == resource.RLIM_INFINITY else min(now + allowance, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _processor_time_limit(seconds: int) -> Callable[[], None]:
    """A function that bounds what the next item may burn, for when the parent is too busy to look at its clock.

    By a timer whose signal nobody can ignore. A hard limit of resources could not be raised again for the next item,
    and the signal of a soft one can be ignored; that one is for what an item starts, and for systems without timers.
    """
    libc, timer = ctypes.CDLL(None), ctypes.c_void_p()
    event = _Event(None, signal.SIGKILL, 0)
    clock = getattr(time, "CLOCK_PROCESS_CPUTIME_ID", None)
    has_timer = hasattr(libc, "timer_create") and not libc.timer_create(clock, ctypes.byref(event), ctypes.byref(timer))
    until = _Spans((0, 0), (seconds, 0))

    def limit() -> None:
        if has_timer:
            libc.timer_settime(timer, 0, ctypes.byref(until), None)
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        soft = math.ceil(time.process_time()) + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))

    return limit
