"""The program of a scoring process: loads the rewards, then computes terms of items until its socket closes.

The process dies with its parent, is limited in memory and processor time, and has no network unless a user function may
need it. Whatever a reward prints goes to standard error. The process is no sandbox for hostile code: a reward is the
user's own, only the text that it reads is untrusted. The messages are described in `messages`.
"""

import math
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from volley.rewards.code import verifier as code
from volley.rewards.config import RewardConfig
from volley.rewards.item import Item
from volley.rewards.math import verifier as math_reward
from volley.rewards.rubric.rubric import Extraction, Rubric
from volley.rewards.scoring.messages import encode, receive
from volley.rewards.scoring.process_limits import die_with_parent, leave_network, limit_memory, processor_time_limit
from volley.rollout.errors import VolleyError

ALIVE_EVERY_S = 0.5


def main() -> None:
    """Entry point. Arguments: the directory of the packages, the number of the socket, and the parent's process id."""
    die_with_parent(int(sys.argv[3]))
    # A graceful stop of a run signals all of its processes, but the current step still needs scores.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[2])) as connection:
        connection.set_inheritable(False)
        incoming = receive(connection)
        setup = next(incoming)
        sys.path += [entry for entry in setup["path"] if entry not in sys.path]
        rubric = _load(connection, setup)
        if rubric is None:
            return
        if not setup["network"]:
            leave_network()
            die_with_parent(int(sys.argv[3]))  # changing namespaces may have reset it
        limit_memory(setup["memory_bytes"])
        limit_processor_time = processor_time_limit(setup["cpu_s"])
        connection.sendall(encode(["ready"]))
        for terms, extracted, *fields in incoming:
            limit_processor_time()
            if not _compute(connection, rubric, terms, Item(*fields), Extraction(*extracted) if extracted else None):
                return


def _load(connection: socket.socket, setup: dict[str, Any]) -> Rubric | None:
    """The rubric with all rewards imported; None after a failure, which has been reported to the parent."""
    lock = threading.Lock()

    def report(*message: str) -> None:
        with lock:
            connection.sendall(encode(message))

    try:
        rubric = Rubric([RewardConfig(**term) for term in setup["terms"]])
        with _progress_reports(report):
            rubric.load(setup["columns"], lambda name: report("loading", name))
            if any(term.name == "code" for term in rubric.terms):
                code.warm_up()
    except VolleyError as error:
        report("failed", str(error))
        return None
    if any(term.name == "math" for term in rubric.terms):
        math_reward.warm_up()
    return rubric


@contextmanager
def _progress_reports(report: Callable[..., None]) -> Iterator[None]:
    """Report to the parent whenever more modules have been imported, so that slow imports do not look like a hang."""
    done = threading.Event()

    def watch() -> None:
        before = len(sys.modules)
        while not done.wait(ALIVE_EVERY_S):
            if len(sys.modules) != before:
                before = len(sys.modules)
                report("alive")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _compute(
    connection: socket.socket, rubric: Rubric, terms: list[int], item: Item, extraction: Extraction | None
) -> bool:
    """Compute the terms of an item and send each result. False after memory ran out: the process must be replaced."""
    for term in terms:
        outcome = rubric.compute(term, item, extraction)
        value = None if math.isnan(outcome.value) else outcome.value
        must_exit = "raised MemoryError" in outcome.error
        connection.sendall(encode([term, value, outcome.error, outcome.seconds, must_exit]))
        if must_exit:
            return False
    return True
