"""Linux system calls of the sandbox that Python does not provide: namespaces, mounts, capabilities, Landlock.

Everything here acts permanently on the calling process, and raises OSError with the name of the call that failed.
"""

import ctypes
import os
import platform
import signal
import struct
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
CAPABILITIES_VERSION = 0x20080522
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
# The same number on every processor.
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
LANDLOCK_READ = 1 << 2 | 1 << 3
# By ABI version: the numbers of file access rights, network access rights and scopes.
LANDLOCK_KINDS = {1: (13, 0, 0), 2: (14, 0, 0), 3: (15, 0, 0), 4: (15, 2, 0), 5: (16, 2, 0), 6: (16, 2, 2)}
# RLIMIT_NPROC does not apply to root, so root becomes the user nobody.
NOBODY = 65534

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def checked(result: int, what: str) -> int:
    """The result of a call, which raises OSError if it is negative."""
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def die_with_parent(parent: int) -> None:
    """Be killed when the thread that started this process ends. Exits if the parent is gone already."""
    checked(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    if os.getppid() != parent:
        os._exit(0)


def leave_root() -> None:
    """Become the user nobody if this process is root and may do so. Root of a user namespace has no rights outside."""
    if os.geteuid() == 0:
        try:
            os.setgroups([])
        except PermissionError:
            return
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        # Otherwise the process's own files in /proc, such as uid_map, still belong to root.
        checked(_libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl")


def enter_namespaces() -> None:
    """Enter new user, mount, process (for children), network, IPC and host name namespaces."""
    user, group = os.geteuid(), os.getegid()
    flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    checked(_libc.unshare(flags), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def enter_empty_root(library: str) -> None:
    """Switch to a read-only root that contains nothing but `library`, at its usual path.

    `library` must be the working directory: the user nobody may not be able to follow a path to it. Packages that are
    installed inside the library are hidden.
    """
    new_root = "/tmp"
    target = new_root + library
    mount(None, "/", flags=MS_REC | MS_PRIVATE)
    mount("tmpfs", new_root, "tmpfs", MS_NOSUID | MS_NODEV, "size=64k,nr_inodes=64,mode=755")
    os.makedirs(target, 0o755)
    mount(".", target, flags=MS_BIND | MS_REC)
    kept = os.statvfs(target).f_flag & MS_NOEXEC
    mount(None, target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | kept)
    for hidden in ("site-packages", "dist-packages"):
        if os.path.isdir(f"{target}/{hidden}"):
            mount("tmpfs", f"{target}/{hidden}", "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV, "size=4k,nr_inodes=2")
    os.chdir(new_root)
    number = PIVOT_ROOT.get(platform.machine())
    if number is None:
        raise OSError(f"pivot_root: not known for the processor {platform.machine()}")
    checked(_libc.syscall(number, b".", b"."), "pivot_root")
    checked(_libc.umount2(b".", MNT_DETACH), "umount2")
    os.chdir("/")
    mount(None, "/", flags=MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)


def mount(source: str | None, target: str, kind: str | None = None, flags: int = 0, options: str | None = None) -> None:
    """mount(2)."""
    arguments = [each.encode() if each is not None else None for each in (source, target, kind)]
    data = options.encode() if options is not None else None
    checked(_libc.mount(*arguments, ctypes.c_ulong(flags), data), f"mount on {target}")


def drop_privileges() -> None:
    """Give up all capabilities, and the possibility to gain any."""
    checked(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    header = struct.pack("=Ii", CAPABILITIES_VERSION, 0)
    checked(_libc.capset(header, bytes(24)), "capset")


def landlock(library: str) -> int:
    """Forbid access to files except reading in `library`, TCP, and signals to processes outside.

    Returns the kernel's ABI version of Landlock. 0 means that the kernel has none and nothing was forbidden.
    """
    abi = max(_libc.syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(1)), 0)
    if not abi:
        return 0
    kinds = [(1 << num) - 1 for num in LANDLOCK_KINDS[min(abi, max(LANDLOCK_KINDS))]]
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    attributes = struct.pack("=QQQ", *kinds)[:size]
    create = _libc.syscall(LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(size), ctypes.c_uint(0))
    rules = checked(create, "landlock_create_ruleset")
    directory = os.open(library, os.O_PATH | os.O_CLOEXEC)
    rule = struct.pack("=Qi", LANDLOCK_READ, directory)
    added = _libc.syscall(LANDLOCK_ADD_RULE, ctypes.c_int(rules), ctypes.c_int(1), rule, ctypes.c_uint(0))
    checked(added, "landlock_add_rule")
    restricted = _libc.syscall(LANDLOCK_RESTRICT_SELF, ctypes.c_int(rules), ctypes.c_uint(0))
    checked(restricted, "landlock_restrict_self")
    os.close(directory)
    os.close(rules)
    return abi
