"""Checks that the rewards of a run can be loaded and called, before anything heavy starts."""

import asyncio
import math
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from volley.rewards.code import verifier as code
from volley.rewards.config import RewardConfig, ScorerConfig
from volley.rewards.rubric.rubric import Rubric
from volley.rewards.scoring.group_terms import make_group_terms, plain_terms
from volley.rewards.scoring.launch import START_TIMEOUT_S, died_loading, kill, launch, too_slow_loading
from volley.rewards.scoring.messages import decode
from volley.rollout.errors import RewardError

IMPORT_SILENCE_S = 3.0
END_TIMEOUT_S = 5.0


def check_rewards(configs: Sequence[RewardConfig], columns: set[str], group_size: int = 0) -> None:
    """Check that every reward can be loaded and called with data that has these columns.

    User functions are imported in a short-lived process. Slow imports may take up to `START_TIMEOUT_S` as long as they
    make progress: within `IMPORT_SILENCE_S` another module is imported, or something is read from the disk. Judges are
    contacted once. Raises RewardError, or ConfigError for terms that contradict each other.

    group_size: completions per prompt, for terms that compare them; 0 if unknown.
    """
    user_terms = Rubric(plain_terms(configs)).user_terms
    if any(term.name == "code" for term in configs):
        code.check_system()
    if user_terms:
        _check_user_terms(user_terms, columns)
    for term in make_group_terms(configs):
        asyncio.run(term.check(group_size))


def _check_user_terms(terms: Sequence[RewardConfig], columns: set[str]) -> None:
    process, connection = launch(terms, columns, math.ceil(START_TIMEOUT_S), ScorerConfig().memory_bytes, True)
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
        for status, *text in decode(buffer):
            if status == "ready":
                return
            if status == "failed":
                raise RewardError(text[0])
            if status == "loading":
                loading = text[0]
    raise too_slow_loading(loading, START_TIMEOUT_S)


def _disk_reads(pid: int) -> str:
    """The number of page faults that waited for the disk. It grows while a process loads a large library."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[9]
