"""The system calls that a sandboxed program may use: those of a Python program that computes, reads and prints.

This is a list of allowed calls, so that calls of future kernels are forbidden. All others fail with ENOSYS, for which C
libraries have fallbacks. Not included: new processes (threads are), other programs, sockets (connected pairs are),
mounts, namespaces, tracing, shared memory, and everything that changes files, times, or limits of other processes.
"""

import ctypes
import errno
import platform
import struct
from collections.abc import Sequence
from functools import lru_cache

ARCHITECTURES = {"x86_64": (0xC000003E, 317), "aarch64": (0xC00000B7, 277)}  # audit number, seccomp's own number
CLONE = {"x86_64": 56, "aarch64": 220}
PRLIMIT = {"x86_64": 302, "aarch64": 261}
ALLOWED = {
    "x86_64": (
        # read, write, close, stat, fstat, lstat, poll, lseek, mmap, mprotect, munmap, brk
        *range(13),
        # rt_sigaction, rt_sigprocmask, rt_sigreturn, ioctl, pread64, pwrite64, readv, writev, access, pipe, select
        *range(13, 24),
        # sched_yield, mremap, madvise, dup, dup2, pause, nanosleep, getitimer, alarm, setitimer, getpid
        *(24, 25, 28, 32, 33, 34, 35, 36, 37, 38, 39),
        # sendto, recvfrom, sendmsg, recvmsg, shutdown, getsockname, getpeername, socketpair, setsockopt, getsockopt
        *(44, 45, 46, 47, 48, 51, 52, 53, 54, 55),
        # exit, kill, uname, fcntl, getcwd, readlink, umask, gettimeofday, getrlimit, getrusage, sysinfo, times
        *(60, 62, 63, 72, 79, 89, 95, 96, 97, 98, 99, 100),
        # getuid, getgid, geteuid, getegid, getppid, getpgrp, getgroups, getresuid, getresgid, getpgid, getsid
        *(102, 104, 107, 108, 110, 111, 115, 118, 120, 121, 124),
        # rt_sigpending, rt_sigtimedwait, rt_sigsuspend, sigaltstack, arch_prctl, gettid, time, futex, sched_getaffinity
        *(127, 128, 130, 131, 158, 186, 201, 202, 204),
        # epoll_create, getdents64, set_tid_address, restart_syscall, fadvise64, clock_gettime, clock_getres
        *(213, 217, 218, 219, 221, 228, 229),
        # clock_nanosleep, exit_group, epoll_wait, epoll_ctl, tgkill, openat, newfstatat, readlinkat, faccessat
        *(230, 231, 232, 233, 234, 257, 262, 267, 269),
        # pselect6, ppoll, set_robust_list, epoll_pwait, eventfd2, epoll_create1, dup3, pipe2, getcpu, getrandom
        *(270, 271, 273, 281, 290, 291, 292, 293, 309, 318),
        # membarrier, statx, rseq, close_range, faccessat2, epoll_pwait2, futex_waitv
        *(324, 332, 334, 436, 439, 441, 449),
    ),
    "aarch64": (
        # getcwd, eventfd2, epoll_create1, epoll_ctl, epoll_pwait, dup, dup3, fcntl, ioctl, faccessat, openat, close
        *(17, 19, 20, 21, 22, 23, 24, 25, 29, 48, 56, 57),
        # pipe2, getdents64, lseek, read, write, readv, writev, pread64, pwrite64, pselect6, ppoll, readlinkat
        *(59, 61, 62, 63, 64, 65, 66, 67, 68, 72, 73, 78),
        # newfstatat, fstat, exit, exit_group, set_tid_address, futex, set_robust_list, nanosleep, getitimer, setitimer
        *(79, 80, 93, 94, 96, 98, 99, 101, 102, 103),
        # clock_gettime, clock_getres, clock_nanosleep, sched_getaffinity, sched_yield, restart_syscall, kill, tgkill
        *(113, 114, 115, 123, 124, 128, 129, 131),
        # sigaltstack, rt_sigsuspend, rt_sigaction, rt_sigprocmask, rt_sigpending, rt_sigtimedwait, rt_sigreturn
        *(132, 133, 134, 135, 136, 137, 139),
        # getresuid, getresgid, times, getpgid, getsid, getgroups, uname, getrlimit, getrusage, umask, getcpu
        *(148, 150, 153, 155, 156, 158, 160, 163, 165, 166, 168),
        # gettimeofday, getpid, getppid, getuid, geteuid, getgid, getegid, gettid, sysinfo, socketpair, getsockname
        *(169, 172, 173, 174, 175, 176, 177, 178, 179, 199, 204),
        # getpeername, sendto, recvfrom, setsockopt, getsockopt, shutdown, sendmsg, recvmsg, brk, munmap, mremap, mmap
        *(205, 206, 207, 208, 209, 210, 211, 212, 214, 215, 216, 222),
        # fadvise64, mprotect, madvise, getrandom, membarrier, statx, rseq, close_range, faccessat2, epoll_pwait2,
        # futex_waitv
        *(223, 226, 233, 278, 283, 291, 293, 436, 439, 441, 449),
    ),
}
CLONE_THREAD = 0x10000
LOAD, RETURN = 0x20, 0x06
JUMP_EQUAL, JUMP_ABOVE, JUMP_AT_LEAST, JUMP_SET = 0x15, 0x25, 0x35, 0x45
Instruction = tuple[int, int, int, int]
ALLOW, KILL = 0x7FFF0000, 0x80000000
NOT_IMPLEMENTED, NOT_PERMITTED = 0x50000 | errno.ENOSYS, 0x50000 | errno.EPERM
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
SET_MODE_FILTER, SPEC_ALLOW = 1, 4

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def restrict() -> None:
    """Restrict this thread, and all that it starts, to the list. Requires `kernel.drop_privileges`. Raises OSError."""
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise OSError(f"seccomp: the system calls of {machine} are unknown")
    code = filter_of(machine)
    program = _Program(len(code) // 8, code)
    number = ARCHITECTURES[machine][1]
    # SPEC_ALLOW avoids slow mitigations against speculative execution; there are no secrets in this process.
    if _libc.syscall(number, SET_MODE_FILTER, SPEC_ALLOW, ctypes.byref(program)):
        raise OSError(ctypes.get_errno(), "seccomp: the system calls cannot be restricted")


@lru_cache(1)
def filter_of(machine: str) -> bytes:
    """The filter in classic BPF. A jump holds the numbers of instructions to skip if true, and if false."""
    code: list[Instruction] = [
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_EQUAL, 1, 0, ARCHITECTURES[machine][0]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
    ]
    # Allow new threads but no processes, and prlimit on the process itself only.
    for number, test, value in (
        (CLONE[machine], JUMP_SET, CLONE_THREAD),
        (PRLIMIT[machine], JUMP_EQUAL, 0),
    ):
        code += [
            (JUMP_EQUAL, 0, 4, number),
            (LOAD, 0, 0, FIRST_ARGUMENT),
            (test, 0, 1, value),
            (RETURN, 0, 0, ALLOW),
            (RETURN, 0, 0, NOT_PERMITTED),
        ]
    ranges: list[tuple[int, int]] = []
    for number in sorted(ALLOWED[machine]):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return b"".join(struct.pack("=HBBI", *each) for each in code + _search(ranges))


def _search(ranges: Sequence[tuple[int, int]]) -> list[Instruction]:
    """Allow numbers within these ranges. Bisection, because the kernel runs a new filter on every possible number."""
    if len(ranges) == 1:
        ((low, high),) = ranges
        return [
            (JUMP_AT_LEAST, 0, 2, low),
            (JUMP_ABOVE, 1, 0, high),
            (RETURN, 0, 0, ALLOW),
            (RETURN, 0, 0, NOT_IMPLEMENTED),
        ]
    middle = len(ranges) // 2
    left = _search(ranges[:middle])
    return [(JUMP_AT_LEAST, len(left), 0, ranges[middle][0]), *left, *_search(ranges[middle:])]
