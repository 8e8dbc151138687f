"""The sandbox against programs that want out, want to stay, want everything, or want to know too much."""

import ast
import collections
import decimal
import fractions
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rewards
from rewards.sandbox import box, probes, system_calls
from rewards.sandbox.box import Limits, Sandbox, Script
from rewards.sandbox.values import LostError, decode, encode
from rollout.errors import RewardError

ROOT = Path(rewards.__file__).parent.parent
LIMITS = Limits(case_s=1.0, memory_bytes=256 << 20, output_bytes=1 << 16)
BRIEF = Limits(case_s=0.2, all_s=0.2)
# Runs each line of its input as an attempt, and tells which of them did not raise.
ATTEMPTS = """
import ctypes, io, os, resource, signal, socket, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(function, *arguments):
    if getattr(libc, function)(*arguments) < 0:
        raise OSError
for number, attempt in enumerate(sys.stdin.read().splitlines()):
    try:
        exec(attempt)
    except BaseException:
        continue
    print(number)
print("end")
"""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    made = Sandbox()
    try:
        made.start()
    except RewardError as error:
        pytest.skip(f"no sandbox on this system: {error}")
    yield made
    made.close()


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test the sandbox holds its zygote and nothing else."""
    yield
    if "sandbox" in request.fixturenames:
        sandbox = request.getfixturevalue("sandbox")
        assert len(descendants(sandbox.pid)) <= 1


def run(sandbox: Sandbox, program: str, stdin: str = "", limits: Limits = LIMITS) -> Script:
    return sandbox.run_script(textwrap.dedent(program).encode(), stdin.encode(), limits)


def what_works(sandbox: Sandbox, attempts: list[str]) -> list[str]:
    script = run(sandbox, ATTEMPTS, "\n".join(attempts))
    *numbers, end = script.output.decode().split()
    assert end == "end"
    return [attempts[int(number)] for number in numbers]


def descendants(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [each for child in map(int, children) for each in (child, *descendants(child))]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_a_plain_program(sandbox: Sandbox) -> None:
    assert run(sandbox, "print(2 * int(input()))", "21\n") == Script(True, 0, b"42\n")
    assert run(sandbox, "import sys; sys.exit(3)").status == 3
    assert run(sandbox, "1 / 0").status == 1
    assert run(sandbox, "print(").status == 1
    assert run(sandbox, "import os; os.abort()").status == -signal.SIGABRT
    assert run(sandbox, "import ctypes; ctypes.string_at(0)").status == -signal.SIGSEGV


@pytest.mark.parametrize(
    "program",
    [
        "print(sum(map(int, open(0).read().split())))",
        "import sys; print(sum(int(x) for line in sys.stdin for x in line.split())); exit()",
        "import os; a, b = os.read(0, 99).split(); os.write(1, b'%d' % (int(a) + int(b)))",
        "import sys; a, b = sys.stdin.buffer.read().split(); sys.stdout.buffer.write(b'%d' % (int(a) + int(b)))",
        "import asyncio\nasync def main(): print(sum(map(int, input().split())))\nasyncio.run(main())",
        "import atexit\na = input()\natexit.register(lambda: print(sum(map(int, a.split()))))",
        "import threading\nthreading.Thread(target=lambda: print(sum(map(int, input().split())))).start()",
        "from concurrent.futures import ThreadPoolExecutor as P\nprint(sum(P(4).map(int, input().split())))",
        "import sys\nsys.setrecursionlimit(10**6)\ndef r(n): return n and 1 + r(n - 1)\nr(10**5)\n"
        "print(sum(map(int, input().split())))",
        "if __name__ == '__main__':\n    print(sum(map(int, input().split())))",
        "import hashlib, json, re, datetime, email.message, xml.dom.minidom\nprint(sum(map(int, input().split())))",
    ],
)
def test_what_programs_of_competitions_do(sandbox: Sandbox, program: str) -> None:
    script = run(sandbox, program, "2 3\n")
    assert (script.ended, script.status, script.output.strip()) == (True, 0, b"5")


def test_the_same_program_says_the_same(sandbox: Sandbox) -> None:
    program = "import random; print(random.random(), list({'a', 'b', 'c', 'd'}), hash('x'))"
    first = run(sandbox, program).output
    sandbox.close()
    assert run(sandbox, program).output == first


def test_files_outside_cannot_be_read(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    places = [
        *("/etc/passwd", "/root", "/home", "/usr", "/var", "/dev", "/dev/null", "/sys", "/proc", "/proc/self/root/etc"),
        *(f"/proc/{os.getpid()}/environ", "/proc/1/environ", "/proc/self/maps", "/proc/self/mem", "/proc/self/fd"),
        *(
            str(tmp_path / "secret"),
            str(tmp_path),
            str(ROOT),
            str(ROOT / "pyproject.toml"),
            os.path.realpath("/bin/sh"),
        ),
        *("/../../../etc/passwd", os.path.dirname(ast.__file__) + "/../../../../../../../../etc/passwd"),
        pytest.__file__,
    ]
    # bubblewrap's world has more directories on the way to what it needs; they are there, and cannot be looked into.
    ways = ("os.listdir", "open", "os.stat") if sandbox.walls == "namespaces" else ("os.listdir", "open")
    attempts = [f"{how}({place!r})" for place in places for how in ways]
    attempts += [f"call('open', {place.encode()!r}, 0)" for place in places]
    attempts += ["os.chroot('/')", "os.open('etc/passwd', os.O_RDONLY, dir_fd=os.open('/', os.O_PATH))"]
    attempts += ["os.chdir('/proc')", "os.symlink('/etc/passwd', '/x')", "os.link(os.__file__, '/x')", "os.fchdir(5)"]
    prefix = os.path.realpath(os.path.dirname(ast.__file__))
    on_the_way = [each for each in places if prefix.startswith(os.path.normpath(each) + "/")]
    works = [each for each in what_works(sandbox, attempts) if not any(repr(place) in each for place in on_the_way)]
    assert works == []


def test_only_the_standard_library_is_there(sandbox: Sandbox) -> None:
    library = os.path.realpath(os.path.dirname(ast.__file__))
    program = "import os\nfor top in ('/', input()):\n for a, _, b in os.walk(top):\n  if b: print(a)"
    found = run(sandbox, program, library).output.decode().splitlines()
    assert library in found
    assert all(place.startswith(library) or place == library for place in found)
    assert not any("/site-packages/" in place or "/dist-packages/" in place for place in found)


def test_nothing_can_be_written(sandbox: Sandbox) -> None:
    library = os.path.dirname(ast.__file__)
    attempts = [
        f"{how}"
        for place in ("/x", "/tmp/x", "/dev/shm/x", "/proc/x", f"{library}/x.py", ast.__file__, "x")
        for how in (f"open({place!r}, 'w')", f"open({place!r}, 'a')", f"os.mkdir({place!r})", f"os.remove({place!r})")
    ]
    attempts += [
        "os.memfd_create('x')",
        "os.mkfifo('/x')",
        "os.chmod('/', 0o777)",
        "os.utime('/')",
        "os.rename('/', '/x')",
    ]
    attempts += [
        "call('mount', b'tmpfs', b'/', b'tmpfs', 0, None)",
        "call('umount2', b'/', 2)",
        "call('shmget', 0, 99, 512)",
    ]
    assert what_works(sandbox, attempts) == []


def test_no_network(sandbox: Sandbox, tmp_path: Path) -> None:
    with ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(str(tmp_path / "socket"))
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0volley{os.getpid()}")
        for listener in (tcp, unix, abstract):
            listener.listen()
        for listener in (tcp, udp, unix, abstract):
            listener.setblocking(False)
        attempts = [
            f"socket.create_connection({tcp.getsockname()!r}, 1)",
            f"socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', {udp.getsockname()!r})",
            f"socket.socket(socket.AF_UNIX).connect({unix.getsockname()!r})",
            f"socket.socket(socket.AF_UNIX).connect({abstract.getsockname()!r})",
            f"socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', {abstract.getsockname()!r})",
            "socket.socket(socket.AF_INET6)",
            "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
            "socket.socket(socket.AF_VSOCK)",
            "socket.create_server(('127.0.0.1', 0))",
            "socket.getaddrinfo('localhost', 80)[0][4] and socket.gethostbyname('example.org')",
        ]
        assert what_works(sandbox, attempts) == []
        for listener in (tcp, unix, abstract):
            with pytest.raises(BlockingIOError):
                listener.accept()
        with pytest.raises(BlockingIOError):
            udp.recv(1)


def test_no_processes_no_privileges(sandbox: Sandbox) -> None:
    attempts = [
        *("os.fork()", "os.forkpty()", "os.posix_spawn(sys.executable, ['x'], {})", "subprocess.run(['/bin/true'])"),
        *(
            "os.execv(sys.executable, ['x'])",
            "call('vfork')",
            "call('clone', 0, 0, 0x11, 0)",
            "call('unshare', 0x10000000)",
        ),
        *("call('syscall', 56, 0x11, 0, 0, 0, 0)", "call('syscall', 435, 0, 0)", "call('setns', 0, 0)"),
        *("call('ptrace', 16, 1, 0, 0)", "call('ptrace', 0, 0, 0, 0)", "call('process_vm_readv', 1, 0, 0, 0, 0, 0)"),
        *("os.setuid(0)", "os.setgroups([0])", "os.nice(-1)", "os.setpriority(os.PRIO_PROCESS, 1, 19)"),
        *("resource.prlimit(1, resource.RLIMIT_CPU, (0, 0))", "os.sched_setaffinity(1, {0})", "os.setsid()"),
        *("resource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "resource.setrlimit(resource.RLIMIT_CPU, (99, 99))"),
        *("os.pidfd_open(1)", "call('keyctl', 0, 0)", "call('bpf', 0, 0, 0)", "call('io_uring_setup', 1, 0)"),
        *("call('perf_event_open', 0, 0, 0, 0, 0)", "call('userfaultfd', 0)", "call('personality', 0x40000)"),
        *(
            "call('prctl', 1, 0, 0, 0, 0)",
            "os.listxattr('/')",
            "call('capset', 0, 0)",
            "call('kexec_load', 0, 0, 0, 0)",
        ),
    ]
    assert what_works(sandbox, attempts) == []


def test_signals_reach_nobody_outside(sandbox: Sandbox) -> None:
    zygote = descendants(sandbox.pid)
    assert len(zygote) == 1
    program = """
        import os, signal, sys
        for pid in (os.getppid(), 1, -1, 0, int(input()), -int(input())):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGSTOP, signal.SIGKILL):
                if pid == 0:
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                    number = signal.SIGTERM
                try:
                    os.kill(pid, number)
                except OSError:
                    pass
        print("alive")
    """
    script = run(sandbox, program, f"{os.getpid()}\n{os.getpgrp()}\n")
    assert script.output == b"alive\n"
    assert descendants(sandbox.pid) == zygote
    assert run(sandbox, "print(1)").output == b"1\n"


def test_nothing_of_the_parent_is_seen(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOLLEY_SECRET", "do-not-tell")
    sandbox.close()
    program = """
        import ctypes, gc, os, sys
        libc = ctypes.CDLL(None)
        libc.getenv.restype = ctypes.c_char_p
        print(dict(os.environ), libc.getenv(b"VOLLEY_SECRET"), sys.argv, os.getpid() < 100, os.uname().nodename)
        stack = ctypes.string_at(ctypes.addressof(ctypes.c_char_p.in_dll(libc, "environ")), 8)
        print(stack and [os.fstat(n).st_mode for n in range(3, 64) if ok(n)])
    """
    program = program.replace("if ok(n)", "if not isinstance(attempt(n), OSError)").replace(
        "libc = ctypes.CDLL(None)\n",
        "libc = ctypes.CDLL(None)\n        def attempt(n):\n            try:\n                return os.fstat(n)\n"
        "            except OSError as error:\n                return error\n",
    )
    script = run(sandbox, program)
    environment, descriptors = script.output.decode().splitlines()
    assert environment.startswith("{} None ['program.py'] True")
    assert descriptors == "[]"


# All text and numbers that a program can reach from its frames and modules, and the files that it has open; backwards,
# so that it does not find what it looks for in itself.
SEARCH = """
import gc, os, sys
def everything():
    seen, found, left = set(), [], [sys._getframe(), sys.modules, *gc.get_objects()]
    while left:
        each = left.pop()
        if id(each) not in seen:
            seen.add(id(each))
            found += [each] if isinstance(each, (str, bytes, int)) else []
            left += gc.get_referents(each)
    for number in range(64):
        try:
            found.append(os.pread(number, 10000, 0))
        except OSError:
            pass
    assert len(found) > 1000
    return {str(each)[::-1] for each in found if not isinstance(each, int) or abs(each) < 10**9}
"""


def test_nothing_of_another_program_is_seen(sandbox: Sandbox) -> None:
    run(sandbox, "x = input() + 'of another program'", "the very secret input ")
    search = "\nx = 'in plain sight'\nfor each in ('terces yrev', 'rehtona fo', 'thgis nialp'): "
    script = run(sandbox, SEARCH + search + "print(any(each in text for text in everything()))")
    assert script.output.split() == [b"False", b"False", b"True"]


def test_memory_is_bounded(sandbox: Sandbox) -> None:
    script = run(sandbox, "x = [bytearray(1 << 20)]\nwhile True: x.append(bytearray(1 << 20))")
    assert (script.ended, script.status) == (True, 1)
    assert what_works(sandbox, ["bytearray(1 << 30)", "'x' * (1 << 40)", "import mmap; mmap.mmap(-1, 1 << 30)"]) == []
    pipes = "import os, fcntl\nn = 0\nwhile True:\n    r, w = os.pipe()\n    n += 1\n    print(n, flush=True)"
    assert int(run(sandbox, pipes).output.split()[-1]) < 64


def test_threads_are_bounded(sandbox: Sandbox) -> None:
    program = """
        import threading, time
        threading.stack_size(32768)
        n = 0
        try:
            while True:
                threading.Thread(target=time.sleep, args=(9,), daemon=True).start()
                n += 1
        except RuntimeError:
            print(n)
    """
    script = run(sandbox, program)
    assert script.status == 0
    assert 8 < int(script.output) < 64


def test_output_is_bounded(sandbox: Sandbox) -> None:
    script = run(sandbox, "while True: print('x' * 1000)")
    assert len(script.output) == LIMITS.output_bytes
    assert script.status != 0
    forever = run(
        sandbox, "import os\nwhile True:\n try: os.write(1, b'x' * 99999)\n except OSError: pass", limits=BRIEF
    )
    assert not forever.ended
    errors = run(sandbox, "import sys\nfor n in range(99999): print('x' * 999, file=sys.stderr)\nprint('end')")
    assert errors.output == b"end\n"


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time; time.sleep(3600)",
        "import signal, time\nfor n in range(1, 65):\n try: signal.signal(n, signal.SIG_IGN)\n except Exception: pass\n"
        "while True:\n try: time.sleep(9)\n except BaseException: pass",
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
        "import threading, time; threading.Thread(target=time.sleep, args=(3600,)).start()",
        "while True:\n try:\n  while True: pass\n except BaseException: pass",
        "x = 9 ** 9 ** 9",
        "import re; re.match('(a+)+$', 'a' * 99 + 'b')",
        "import select; select.select([], [], [])",
    ],
)
def test_time_is_bounded(sandbox: Sandbox, program: str) -> None:
    start = time.monotonic()
    script = run(sandbox, program, limits=BRIEF)
    assert not script.ended
    assert time.monotonic() - start < 2.0


def test_a_busy_machine_does_not_make_a_program_slow(sandbox: Sandbox) -> None:
    """Time is the program's own: with the machine shared among many it may take twice as long."""
    script = run(sandbox, "import time; time.sleep(0.25); print('end')", limits=BRIEF)
    assert script == Script(True, 0, b"end\n")
    assert not run(sandbox, "import time\nwhile time.process_time() < 0.35: pass", limits=BRIEF).ended


def test_a_daemon_cannot_stay(sandbox: Sandbox) -> None:
    program = """
        import os, threading, time
        try:
            if not os.fork():
                os.setsid()
                if not os.fork():
                    time.sleep(3600)
        except OSError:
            pass
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
        print("left")
    """
    assert run(sandbox, program) == Script(True, 0, b"left\n")
    assert len(descendants(sandbox.pid)) == 1


def test_a_zygote_that_is_gone_is_replaced(sandbox: Sandbox) -> None:
    assert run(sandbox, "print(1)").output == b"1\n"
    (zygote,) = descendants(sandbox.pid)
    os.kill(zygote, signal.SIGKILL)
    assert run(sandbox, "print(2)").output == b"2\n"
    os.kill(sandbox.pid, signal.SIGKILL)
    assert run(sandbox, "print(3)").output == b"3\n"


def test_threads_share_one_sandbox(sandbox: Sandbox) -> None:
    results: dict[int, bytes] = {}

    def work(number: int) -> None:
        results[number] = run(sandbox, "print(input())", str(number)).output

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert results == {number: b"%d\n" % number for number in range(8)}


def test_everything_dies_with_the_parent(sandbox: Sandbox) -> None:
    code = (
        "from rewards.sandbox.box import *; shared().start(); print(shared().pid, flush=True); shared().run_script(b'"
    )
    code += "while True: pass', b'', Limits(case_s=600))"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    launcher = int(parent.stdout.readline())
    assert within(5, lambda: len(descendants(launcher)) == 2)
    everything = [launcher, *descendants(launcher)]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert within(2, lambda: not any(map(is_alive, everything)))


def test_a_system_without_namespaces_is_refused(sandbox: Sandbox) -> None:
    """In a user namespace that allows no more of them; without bubblewrap, which needs one too."""
    code = "from rewards.sandbox.box import shared\ntry: shared().start()\nexcept ValueError as error: print(error)"
    forbid = f'echo 0 > /proc/sys/user/max_user_namespaces && PATH= exec "{sys.executable}" -c "$0"'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", forbid, code], capture_output=True, text=True, cwd=ROOT
    )
    if "max_user_namespaces" in done.stderr or not done.stdout:
        pytest.skip(f"namespaces cannot be forbidden here: {done.stderr[-200:]}")
    assert done.stdout.startswith("reward 'code': this system cannot hold a hostile program (")
    assert "unshare: No space left on device" in done.stdout
    assert done.stdout.count("\n") == 1


def verdict_of(code: bytes, number: int, architecture: int, argument: int) -> int:
    """What a filter returns for a call, read as the kernel reads it."""
    data = struct.pack("=IIQ6Q", number, architecture, 0, argument, 0, 0, 0, 0, 0)
    place = held = 0
    while True:
        operation, if_true, if_false, value = struct.unpack_from("=HBBI", code, 8 * place)
        place += 1
        if operation == system_calls.RETURN:
            return value
        if operation == system_calls.LOAD:
            (held,) = struct.unpack_from("=I", data, value)
            continue
        tests = {
            system_calls.JUMP_EQUAL: held == value,
            system_calls.JUMP_ABOVE: held > value,
            system_calls.JUMP_AT_LEAST: held >= value,
            system_calls.JUMP_SET: bool(held & value),
        }
        place += if_true if tests[operation] else if_false


@pytest.mark.parametrize("machine", system_calls.ALLOWED)
def test_the_filter_says_what_the_list_says(machine: str) -> None:
    code = system_calls.filter_of(machine)
    own, foreign = system_calls.ARCHITECTURES[machine][0], 0x40000003
    for number in (*range(600), *range(1 << 30, (1 << 30) + 600), 2**32 - 1):
        expected = {
            system_calls.CLONE[machine]: [system_calls.NOT_PERMITTED, system_calls.ALLOW],
            system_calls.PRLIMIT[machine]: [system_calls.ALLOW, system_calls.NOT_PERMITTED],
        }.get(
            number,
            [system_calls.ALLOW if number in system_calls.ALLOWED[machine] else system_calls.NOT_IMPLEMENTED] * 2,
        )
        assert [verdict_of(code, number, own, argument) for argument in (0, system_calls.CLONE_THREAD)] == expected
        assert verdict_of(code, number, foreign, 0) == system_calls.KILL


def commands_with(change: str) -> Callable[[int], list[str]]:
    """How a zygote is started, with a wall taken away."""
    command = dict(box._commands())["namespaces"]

    def start(descriptor: int) -> list[str]:
        return [change + each if "from rewards.sandbox.zygote" in each else each for each in command(descriptor)]

    return start


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("FILTER.restrict = lambda: None; ", "it can start a process, it can trace"),
        ("ZYGOTE._limit = lambda job, cpu_s: None; ", "it can take memory"),
        (
            "KERNEL.enter_empty_root = lambda library: None; KERNEL.landlock = lambda library: 0; ",
            "it can read a file, ",
        ),
    ],
)
def test_a_wall_that_is_missing_is_noticed(sandbox: Sandbox, change: str, said: str) -> None:
    if sandbox.walls != "namespaces":
        pytest.skip(f"the walls here are of {sandbox.walls}")
    path = "import sys; sys.path.insert(0, sys.argv[1]); "
    for name, module in {"FILTER": "system_calls", "ZYGOTE": "zygote", "KERNEL": "kernel"}.items():
        path += f"import rewards.sandbox.{module} as {name}; "
    broken = Sandbox()
    try:
        broken._start(commands_with(path + change))
        with pytest.raises(OSError, match=said):
            probes.prove(broken)
    finally:
        broken.close()


def test_without_a_world_of_its_own_nothing_starts(sandbox: Sandbox) -> None:
    """A zygote kills all processes that it sees, so it must not see any others."""
    command = dict(box._commands())["namespaces"]
    broken = Sandbox()
    try:
        with pytest.raises(OSError, match="not in a world of their own"):
            broken._start(lambda descriptor: [*command(descriptor)[:-1], "bwrap"])
    finally:
        broken.close()


def test_as_nobody(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As an ordinary user: with the system's Python, as this one's may be root's."""
    python = "/usr/bin/python3"
    if os.geteuid() != 0:
        pytest.skip("this is no root that could become nobody; all other tests ran as an ordinary user")
    version = subprocess.run([python, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True)
    if version.stdout != b"True\n":
        pytest.skip(f"{python} is not 3.11 or newer")
    place = Path("/tmp") / f"volley-nobody-{os.getpid()}"
    try:
        for package in ("rewards", "rollout"):
            shutil.copytree(ROOT / package, place / package, ignore=shutil.ignore_patterns("__pycache__"))
        place.chmod(0o755)
        code = """
            import os
            from rewards.code import verify
            from rewards.sandbox.box import Limits, shared
            fence = "```python\\n{}\\n```".format
            good = verify(fence("def f(x): return x * x"), ["assert f(3) == 9"])
            bad = verify(fence("def f(x): return 4"), ["assert f(3) == 9"])
            probe = b"import os, threading\\ntry: os.fork()\\nexcept OSError: print(os.listdir('/'))"
            print(os.geteuid(), shared().walls, good, bad, shared().run_script(probe, b"", Limits()).output)
        """
        done = subprocess.run(
            [python, "-B", "-c", textwrap.dedent(code)],
            capture_output=True,
            text=True,
            cwd=place,
            user=65534,
            group=65534,
            extra_groups=[],
            env={"PATH": "/usr/bin:/bin"},
        )
    finally:
        shutil.rmtree(place)
    assert done.stdout.startswith("65534 "), done.stderr
    assert done.stdout.split()[2:4] == ["True", "False"]


def outcome(
    sandbox: Sandbox, program: str, tests: list[str], names: tuple[str, ...] = ("f",), case_s: float = 0.3, **job: Any
) -> str:
    job = {"setup": "", "tests": tests, "names": names} | job
    return sandbox.run_tests(textwrap.dedent(program).encode(), job, Limits(case_s=case_s, all_s=4.0))


def test_tests_and_program_are_two_processes(sandbox: Sandbox) -> None:
    """The program looks for the expected values, the tests and the result: none of them is in its process."""
    program = SEARCH + "\ndef f(x, backwards): return any(backwards in each for each in everything())"
    tests = ["assert f(1, '828172') is False, 271828", "assert f('271828', '828172') is True"]
    assert outcome(sandbox, program, tests, case_s=2.0) == "11"


# Says yes to everything that it is asked.
LIAR = """
class Liar:
    def __init__(self, *_): pass
    def __call__(self, *_): return self
    def __getattr__(self, name): return lambda *_: True
    def __iter__(self): return iter(())
    def yes(self, *_): return True
    def zero(self, *_): return 0
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __bool__ = __instancecheck__ = yes
    __sub__ = __rsub__ = __abs__ = __round__ = __mod__ = __xor__ = __rxor__ = __len__ = __index__ = __int__ = zero
    __hash__ = lambda self: hash(4)
"""


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "def f(x): raise SystemExit(0)",
        "import os\ndef f(x): os._exit(0)",
        "import os, signal\ndef f(x): os.kill(-1, signal.SIGKILL)",
        "import os, signal\nos.kill(-1, signal.SIGKILL)",
        "class E:\n def __eq__(self, other): return True\ndef f(x): return E()",
        "class E(int):\n def __eq__(self, other): return True\n __hash__ = None\ndef f(x): return E(5)",
        "class E(list):\n def __eq__(self, other): return True\ndef f(x): return E()",
        "import builtins\nbuiltins.AssertionError = type('E', (Exception,), {'__new__': print})\ndef f(x): return 5",
        "import builtins\nbuiltins.exec = builtins.compile = lambda *a: None\ndef f(x): return 5",
        "import os\ndef f(x):\n for n in range(64):\n  try: os.write(n, b'1')\n  except OSError: pass\n return 5",
        "import os\nfor n in range(64):\n try: os.write(n, b'11111111')\n except OSError: pass\ndef f(x): return 5",
        LIAR + "def f(x): return Liar()",
        LIAR + "f = Liar",
        LIAR + "f = Liar()",
        LIAR + "def f(x): return [Liar()]",
        "def f(x): raise AssertionError",
        "def f(x): raise StopIteration",
        "def f(x): return NotImplemented",
        "def f(x): return f",
        "f = 5",
        "import unittest.mock\nf = unittest.mock.MagicMock()",
        "import unittest.mock\nf = unittest.mock.ANY",
        "def f(x): return float('nan')",
        "def f(x):\n while True: pass",
        "def f(x): return [[0] * 10**6] * 100",
        "def f(x):\n a = []\n a.append(a)\n return a",
        "def f(x):\n a = 0\n for n in range(10**5): a = [a]\n return a",
        "import rewards.sandbox.values as v\nv.send = lambda c, m: c.sendall(b'1' * 10**6)\ndef f(x): return 5",
        "import rewards.sandbox.program as p\np.send = lambda c, m: c.sendall(b'\\0\\0\\0\\2{}')\ndef f(x): return 5",
        "import rewards.sandbox.program as p\ns = p.send\np.send = lambda c, m: s(c, ['value', ['object', 1, 2], {}])\n"
        "def f(x): return 5",
        "import rewards.sandbox.program as p\ns = p.send\np.send = lambda c, m: s(c, ['error', 'SystemExit', ''])\n"
        "def f(x): return 5",
        "import rewards.sandbox.program as p\ns = p.send\np.send = lambda c, m: s(c, ['error', 'print', ''])\n"
        "def f(x): return 5",
        "import rewards.sandbox.program as p\ns = p.send\n"
        "p.send = lambda c, m: s(c, ['names', {'f': 4, 'int': 5, '__builtins__': {}}] if m[0] == 'names' else m)",
        "import rewards.sandbox.program as p\ns = p.send\n"
        "p.send = lambda c, m: s(c, m if m[0] == 'names' else ['value', 5, {'0': ['list', 4]}])\ndef f(x): return 5",
        "import rewards.sandbox.trial as t\nt.FAILED = b'1'\nt.run = None\ndef f(x): return 5",
    ],
)
def test_no_verdict_can_be_forged(sandbox: Sandbox, program: str) -> None:
    tests = ["assert f(2) == 4", "assert f(3) == 9 and int('4') == 4", "assert all(map(lambda x: f(x) == 16, [4]))"]
    tests += ["for x in map(f, [5]):\n    assert x == 25\n    break\nelse:\n    assert False"]
    tests += ["try:\n    assert f(6) == 36\nexcept TypeError:\n    assert False"]
    tests += ["assert abs(f(2) - 4) < 1e-6", "assert 4 in f(2)", "assert f(2) in (4,)", "assert f(2) in {4: 0}"]
    tests += ["assert f(2).startswith('4')", "assert f(2).issubset({4}) and list(f(2))", "assert round(f(2), 2) == 4"]
    tests += ["assert isinstance(f(2), str)", "assert f(2) > 3 and f(2) < 5", "assert not f(2) != 4"]
    for test in tests:
        assert "1" not in outcome(sandbox, program, [test])


def test_what_tests_may_do_with_a_program(sandbox: Sandbox) -> None:
    program = """
        import collections, decimal, fractions
        class Stack:
            limit = 3
            def __init__(self, items=()): self.items = list(items)
            def push(self, item): self.items.append(item)
            def __len__(self): return len(self.items)
            def __getitem__(self, index): return self.items[index]
            def __eq__(self, other): return self.items == other.items
            def __lt__(self, other): return self.items < other.items
            def __add__(self, other): return Stack(self.items + other.items)
            def __repr__(self): return f"Stack({self.items})"
        class Own(ValueError): pass
        def f(x, *, times=1): return x * times
        def sort(values): values.sort()
        def grow(values): values["new"] = {1, 2}
        def count():
            yield from range(3)
        def fail(): raise KeyError("x")
        def fail_too(): raise Own
        def same(x): return x
        def point(): return collections.namedtuple("P", "x y")(1, 2)
        def top(stack): return stack.items[-1]
    """
    tests = [
        "assert f(2, times=3) == 6",
        "assert f('a', times=2) == 'aa'",
        "x = [3, 1, 2]\nsort(x)\nassert x == [1, 2, 3]",
        "x = {}\ngrow(x)\nassert x == {'new': {1, 2}}",
        "assert list(count()) == [0, 1, 2] and sum(count()) == 3 and next(count()) == 0",
        "s = Stack()\ns.push(4)\nassert len(s) == 1 and s[0] == 4 and 4 in s and 5 not in s and s.items == [4]",
        "assert Stack([1]) == Stack([1]) and Stack([1]) != Stack([2]) and (Stack([1]) + Stack([2])).items == [1, 2]",
        "assert Stack([1]) != [1] and sorted([Stack([2]), Stack([1])])[0].items == [1] and {Stack()} != {1}",
        "assert str(Stack([1])) == 'Stack([1])' and Stack.limit == 3 and top(Stack([1, 2])) == 2",
        "s = Stack()\ns.limit = 9\nassert s.limit == 9 and s is same(s)",
        "try:\n    fail()\n    assert False\nexcept KeyError:\n    pass",
        "try:\n    fail_too()\nexcept Exception:\n    pass\nelse:\n    assert False",
        "import fractions, decimal, collections\n"
        "for x in (None, True, 1.5, float('inf'), 2**200, -2**63, 'ü\\ud800', b'a', 1j, (1,), {1: [2]}, {(1, 2): 3}, "
        "frozenset([1]), range(3), fractions.Fraction(1, 3), decimal.Decimal('1.10'), collections.deque([1])):\n"
        "    assert same(x) == x and type(same(x)) is type(x), x",
        "assert point() == (1, 2)",
        "import math\nassert math.isclose(f(0.5), 0.5)",
    ]
    names = ("f", "sort", "grow", "count", "Stack", "fail", "fail_too", "same", "point", "top")
    assert outcome(sandbox, program, tests, names) == "1" * len(tests)


def test_a_test_may_catch_anything_but_not_the_programs_end(sandbox: Sandbox) -> None:
    test = "try:\n    f()\nexcept:\n    pass"
    for program in ("import os\ndef f(): os._exit(0)", "def f():\n while True: pass"):
        assert outcome(sandbox, program, [test, test]) == "0"
    assert outcome(sandbox, "def f(): raise ValueError", [test, test]) == "11"


def test_what_cannot_travel_is_unusable(sandbox: Sandbox) -> None:
    assert outcome(sandbox, "def f(x): return 1", ["f(1)", "f(lambda: 1)"]) == "1?"
    assert outcome(sandbox, "def f(x): return 1", ["f(1)"], setup="f(object())") == "?"


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers().map(lambda number: number**40)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.fractions(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.text()), inner)
        | st.frozensets(st.integers() | st.text())
        | st.sets(st.booleans() | st.binary())
    ),
    max_leaves=20,
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["list", "dict", "set", "int", "range"])
    | st.sampled_from(["complex", "fraction", "decimal", "bytes", "object", "1e9"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def refuse(value: Any) -> Any:
    raise LostError(str(value))


@settings(max_examples=300, deadline=1000)
@given(value=PLAIN)
def test_plain_values_arrive_as_they_are(value: Any) -> None:
    arrived = decode(json.loads(json.dumps(encode(value, refuse))), refuse)
    assert arrived == value
    assert type(arrived) is type(value)


@settings(max_examples=500, deadline=1000)
@given(form=JSON)
def test_what_a_program_sends_is_plain_or_refused(form: Any) -> None:
    try:
        value = decode(form, refuse)
    except LostError:
        return
    plain = (type(None), bool, int, float, str, list, tuple, set, frozenset, dict, bytes, bytearray, complex, range)
    assert isinstance(value, (*plain, fractions.Fraction, decimal.Decimal, collections.deque))
