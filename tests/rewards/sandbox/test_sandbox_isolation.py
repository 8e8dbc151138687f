"""The sandbox itself: its end, its replacement, its self-test, and systems on which it must not start."""

import os
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import volley
from tests.rewards.sandbox_helpers import descendants, is_alive, run, within
from volley.rewards.sandbox import box, system_calls
from volley.rewards.sandbox.box import Sandbox
from volley.rewards.sandbox.probes import check_isolation
from volley.rewards.sandbox.types import Limits

ROOT = Path(volley.__file__).parent.parent


def test_a_zygote_that_is_gone_is_replaced(sandbox: Sandbox) -> None:
    assert run(sandbox, "print(1)").output == b"1\n"
    (zygote,) = descendants(sandbox.pid)
    os.kill(zygote, signal.SIGKILL)
    assert run(sandbox, "print(2)").output == b"2\n"
    os.kill(sandbox.pid, signal.SIGKILL)
    assert run(sandbox, "print(3)").output == b"3\n"


def test_an_interrupted_call_leaves_no_reply_behind(sandbox: Sandbox) -> None:
    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            run(sandbox, "import time; time.sleep(0.4); print(1)")
    finally:
        signal.signal(signal.SIGALRM, before)
    time.sleep(0.4)
    assert run(sandbox, "print(2)").output == b"2\n"


def test_an_interrupted_start_leaves_no_message_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Sandbox()

    def interrupted(run_job: Callable[..., Any]) -> None:
        monkeypatch.setattr(box, "check_isolation", check_isolation)
        raise KeyboardInterrupt

    monkeypatch.setattr(box, "check_isolation", interrupted)
    with pytest.raises(KeyboardInterrupt):
        own.start()
    assert own.pid == 0
    try:
        assert run(own, "print(2)").output == b"2\n"
    finally:
        own.close()


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
    code = "from volley.rewards.sandbox.box import *; shared().start(); print(shared().pid, flush=True); "
    code += "shared().run_script(b'while True: pass', b'', Limits(case_s=600))"
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
    """In a user namespace that allows no further ones; without bubblewrap, which needs one too."""
    code = (
        "from volley.rewards.sandbox.box import shared\ntry: shared().start()\nexcept ValueError as error: print(error)"
    )
    forbid = f'echo 0 > /proc/sys/user/max_user_namespaces && PATH= exec "{sys.executable}" -c "$0"'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", forbid, code], capture_output=True, text=True, cwd=ROOT
    )
    if "max_user_namespaces" in done.stderr or not done.stdout:
        pytest.skip(f"namespaces cannot be forbidden here: {done.stderr[-200:]}")
    assert done.stdout.startswith("reward 'code': no sandbox works on this system (")
    assert "unshare: No space left on device" in done.stdout
    assert done.stdout.count("\n") == 1


def verdict_of(code: bytes, number: int, architecture: int, argument: int) -> int:
    """The result of a filter for a call, interpreted like in the kernel."""
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
def test_the_filter_matches_the_list(machine: str) -> None:
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


def without(sandbox: Sandbox, part: str) -> Sandbox:
    """A sandbox with our own namespaces that was started without a part of its isolation, and without the self-test."""
    if sandbox.isolation != "namespaces":
        pytest.skip(f"the isolation here is {sandbox.isolation}")
    command = dict(box._commands())["namespaces"]
    change = (
        "import sys; sys.path.insert(0, sys.argv[1]); from volley.rewards.sandbox import kernel, system_calls, zygote; "
    )
    change += f"{part} = lambda *_: 0; "
    broken = Sandbox()
    broken._start(lambda descriptor: [change * ("main()" in each) + each for each in command(descriptor)])
    return broken


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("system_calls.restrict", "it can start a process, it can trace"),
        ("zygote._limit", "it can take memory"),
        ("kernel.enter_empty_root = kernel.landlock", "it can read a file, "),
    ],
)
def test_missing_isolation_is_detected(sandbox: Sandbox, part: str, message: str) -> None:
    broken = without(sandbox, part)
    try:
        with pytest.raises(OSError, match=message):
            check_isolation(broken.run_job)
    finally:
        broken.close()


def test_a_kernel_without_landlock_is_accepted(sandbox: Sandbox) -> None:
    broken = without(sandbox, "kernel.landlock")
    try:
        check_isolation(broken.run_job)  # raises if a program can do anything forbidden
        reply, output = broken.run_job("script", b"print(6 * 7)", b"", Limits(case_s=2.0), 4.0)
        assert (reply["ended"], output) == (True, b"42\n")
    finally:
        broken.close()


def test_without_its_own_process_namespace_it_does_not_start(sandbox: Sandbox) -> None:
    """A zygote kills all processes that it sees, so it must not see any others."""
    command = dict(box._commands())["namespaces"]
    broken = Sandbox()
    try:
        with pytest.raises(OSError, match="not in its own process namespace"):
            broken._start(lambda descriptor: [*command(descriptor)[:-1], "bwrap"])
    finally:
        broken.close()


def test_as_an_unprivileged_user(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> None:
    """With the system's Python, because this one may be readable by root only."""
    python = "/usr/bin/python3"
    if os.geteuid() != 0:
        pytest.skip("not root, so all other tests ran as an unprivileged user already")
    version = subprocess.run([python, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True)
    if version.stdout != b"True\n":
        pytest.skip(f"{python} is not 3.11 or newer")
    place = Path("/tmp") / f"volley-nobody-{os.getpid()}"
    try:
        shutil.copytree(ROOT / "volley", place / "volley", ignore=shutil.ignore_patterns("__pycache__"))
        place.chmod(0o755)
        code = """
            import os
            from volley.rewards.code.verifier import verify
            from volley.rewards.sandbox.box import Limits, shared
            fence = "```python\\n{}\\n```".format
            good = verify(fence("def f(x): return x * x"), ["assert f(3) == 9"])
            bad = verify(fence("def f(x): return 4"), ["assert f(3) == 9"])
            probe = b"import os, threading\\ntry: os.fork()\\nexcept OSError: print(os.listdir('/'))"
            print(os.geteuid(), shared().isolation, good, bad, shared().run_script(probe, b"", Limits()).output)
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
