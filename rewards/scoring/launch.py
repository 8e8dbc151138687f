"""Starts and kills scoring processes: own program, own session, clean environment, one socket."""

import contextlib
import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import volley
from volley.rewards.config import RewardConfig
from volley.rewards.scoring.messages import encode
from volley.rollout.errors import RewardError

START_TIMEOUT_S = 60.0
STANDARD_ERROR = 2
_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from volley.rewards.scoring.child import main; main()"
_SECRET = re.compile(r"(^|_)(TOKENS?|(API)?KEYS?|SECRETS?|PASSWORD|PASSWD|CREDENTIALS?)(_|$)|^RAY_AUTH_|^WANDB_")


def clean_environment() -> dict[str, str]:
    """This process's environment without variables that are named like secrets.

    Numerical libraries get one thread. Hashes are the same in every process, so that the same response always gets the
    same score.
    """
    environment = {name: value for name, value in os.environ.items() if not _SECRET.search(name.upper())}
    return environment | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}


def launch(
    terms: Sequence[RewardConfig], columns: Collection[str] | None, cpu_s: int, memory_bytes: int, network: bool
) -> tuple["subprocess.Popen[bytes]", socket.socket]:
    """Start a process for these rewards; returns it and the driver's end of its socket.

    The process dies with the *thread* that calls this, because that is what the kernel watches. Call it from a thread
    that outlives the process. Raises RewardError for options that JSON cannot represent, and OSError if the system
    cannot start more processes.
    """
    setup: dict[str, Any] = {
        "terms": [dataclasses.asdict(term) for term in terms],
        "columns": None if columns is None else sorted(columns),
        "path": [entry or os.getcwd() for entry in sys.path],
        "cpu_s": cpu_s,
        "memory_bytes": memory_bytes,
        "network": network,
    }
    try:
        message = encode(setup)
    except TypeError as error:
        raise RewardError(f"rewards: an option is not a plain value ({error}); quote dates and the like.") from None
    ours, theirs = socket.socketpair()
    root = str(Path(volley.__file__).parent.parent)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, root, str(theirs.fileno()), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=STANDARD_ERROR,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            env=clean_environment(),
        )
    with contextlib.suppress(OSError):  # the first read shows if the process is dead already
        ours.sendall(message)
    return process, ours


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process and everything it started. After it was waited for this does nothing, as its id may be reused."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def died_loading(name: str) -> RewardError:
    """The error for a process that ended while it loaded this reward."""
    return RewardError(
        f"{_subject(name)} cannot be imported: the process exited; check the module for a call that exits."
    )


def too_slow_loading(name: str, seconds: float) -> RewardError:
    """The error for a process that did not load this reward in time."""
    return RewardError(
        f"{_subject(name)} hangs at import (stopped after {seconds:g} s); move slow work into the function."
    )


def _subject(name: str) -> str:
    """The start of an error message. name: "" before the first reward was imported."""
    return f"reward '{name}'" if name else "rewards: a scoring process"
