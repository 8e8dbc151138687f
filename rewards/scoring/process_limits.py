"""Limits that a scoring process sets for itself: lifetime, network, memory and processor time."""

import ctypes
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000


class _SignalEvent(ctypes.Structure):
    """`struct sigevent`: what a timer does when it expires. notify: 0 sends the signal."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("_", ctypes.c_char * 48),
    )


class _TimerSetting(ctypes.Structure):
    """`struct itimerspec`: seconds and nanoseconds of the interval, and until the timer expires."""

    _fields_ = (("interval", ctypes.c_long * 2), ("value", ctypes.c_long * 2))


def die_with_parent(parent: int) -> None:
    """Be killed when the parent dies. Exits if it is dead already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit()


def leave_network() -> None:
    """Enter an empty network namespace, as root or in a user namespace that keeps the user and group ids.

    If the system forbids both, or if this process has threads, the network remains available.
    """
    if sys.platform != "linux":
        return
    libc, ids = ctypes.CDLL(None), {"uid_map": os.getuid(), "gid_map": os.getgid()}
    if libc.unshare(CLONE_NEWNET) == 0 or libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        return
    with suppress(OSError):
        Path("/proc/self/setgroups").write_text("deny")
        for name, number in ids.items():
            Path(f"/proc/self/{name}").write_text(f"{number} {number} 1")


def limit_memory(allowance: int) -> None:
    """Limit the address space to its current size, with all rewards loaded, plus `allowance` bytes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = now + allowance if hard == resource.RLIM_INFINITY else min(now + allowance, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def processor_time_limit(seconds: int) -> Callable[[], None]:
    """A function that limits the processor time of the next item, in case the parent is too busy to check its clock.

    It uses a timer that sends SIGKILL. A hard resource limit could not be raised again for the next item, and the
    signal of a soft limit can be ignored. The soft limit is for what an item starts, and for systems without timers.
    """
    libc, timer = ctypes.CDLL(None), ctypes.c_void_p()
    event = _SignalEvent(None, signal.SIGKILL, 0)
    clock = getattr(time, "CLOCK_PROCESS_CPUTIME_ID", None)
    has_timer = hasattr(libc, "timer_create") and not libc.timer_create(clock, ctypes.byref(event), ctypes.byref(timer))
    until = _TimerSetting((0, 0), (seconds, 0))

    def limit() -> None:
        if has_timer:
            libc.timer_settime(timer, 0, ctypes.byref(until), None)
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        soft = math.ceil(time.process_time()) + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))

    return limit
