"""Whether a run's rewards can be loaded and called at all, found out before anything heavy starts."""

import asyncio
import math
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from volley.rewards.code import verifier as code
from volley.rewards.config import RewardConfig, ScorerConfig
from volley.rewards.scoring.child import decode
from volley.rewards.scoring.child_handle import START_TIMEOUT_S, died_loading, kill, launch, too_slow_loading
from volley.rewards.scoring.group_terms import make_group_terms, plain_terms
from volley.rewards.scoring.rubric import Rubric
from volley.rollout.errors import RewardError

IMPORT_SILENCE_S = 3.0
END_TIMEOUT_S = 5.0


def check_rewards(configs: Sequence[RewardConfig], columns: set[str], group_size: int = 0) -> None:
    """Find out, before a run, whether every reward can be loaded and called with data of these columns.

    The user's functions are imported in a short-lived child. Slow imports are waited for, up to `START_TIMEOUT_S`, as
    long as they get on: within `IMPORT_SILENCE_S` another module is imported, or something is read from the disk.
    group_size: completions per prompt, for terms that compare them (0: not known). Judges are called once, here and
    now. Raises RewardError, or ConfigError for terms that contradict each other.
    """
    own = Rubric(plain_terms(configs)).own_terms
    if any(term.name == "code" for term in configs):
        code.check_system()
    if own:
        _check_own(own, columns)
    for term in make_group_terms(configs):
        asyncio.run(term.check(group_size))


def _check_own(own: Sequence[RewardConfig], columns: set[str]) -> None:
    process, connection = launch(own, columns, math.ceil(START_TIMEOUT_S), ScorerConfig().memory_bytes, True)
    try:
        with connection:
            _await_ready(connection, process.pid)
    finally:
        kill(process)
        process.wait(END_TIMEOUT_S)


def _await_ready(connection: socket.socket, pid: int) -> None:
    connection.settimeout(IMPORT_SILENCE_S)
    loading, buffer = "", bytearray()
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        reads = _disk_reads(pid)
        try:
            chunk = connection.recv(1 << 16)
        except TimeoutError:
            if reads == _disk_reads(pid):
                raise too_slow_loading(loading, IMPORT_SILENCE_S) from None
            continue
        except ConnectionError:
            chunk = b""
        if not chunk:
            raise died_loading(loading)
        buffer += chunk
        for what, *text in decode(buffer):
            if what == "ready":
                return
            if what == "failed":
                raise RewardError(text[0])
            if what == "loading":
                loading = text[0]
    raise too_slow_loading(loading, START_TIMEOUT_S)


def _disk_reads(pid: int) -> str:
    """Page faults that waited for the disk: they grow while a child loads a large library."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[9]
