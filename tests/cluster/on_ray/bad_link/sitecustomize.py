"""On PYTHONPATH, this simulates a bad link between learner and engines. An environment variable selects the fault.

VOLLEY_TEST_IN_PUSH: a slow link. The sixth and twelfth push of a learner pause in the middle, and create the file that
the variable names. VOLLEY_TEST_BAD_CARD: a bad network card. In the sixth push that one engine receives, a byte is
flipped; that engine is the first one that creates the file that the variable names.
"""

import importlib.abc
import importlib.machinery
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

BAD_PUSHES = (6, 12)
PAUSE_S = 4.0


def slowed(weights: Iterable[Any], middle: int) -> Iterator[Any]:
    for i, weight in enumerate(weights):
        if i == middle:
            Path(os.environ["VOLLEY_TEST_IN_PUSH"]).touch()
            time.sleep(PAUSE_S)
        yield weight


class Work:
    """A broadcast with a byte that is flipped on arrival."""

    def __init__(self, work: Any, bucket: Any) -> None:
        self._work, self._bucket = work, bucket

    def wait(self) -> None:
        self._work.wait()
        self._bucket[len(self._bucket) // 2] ^= 1


class BadCard:
    """A group whose first bucket arrives with a flipped byte."""

    def __init__(self, group: Any) -> None:
        self._group, self._is_first = group, True

    def broadcast(self, bucket: Any) -> Any:
        work = self._group.broadcast(bucket)
        is_first, self._is_first = self._is_first, False
        return Work(work, bucket) if is_first else work


def has_the_bad_card() -> bool:
    try:
        os.close(os.open(os.environ["VOLLEY_TEST_BAD_CARD"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def spoil(stream: Any) -> None:
    """Replace the module's `send` or `receive` by the bad link."""
    send, receive, pushes = stream.send, stream.receive, [0]

    def is_bad_push() -> bool:
        pushes[0] += 1
        return pushes[0] in BAD_PUSHES

    def slow_send(group: Any, plan: Any, weights: Iterable[Any], *rest: Any) -> Any:
        return send(group, plan, slowed(weights, len(plan.metas) // 2) if is_bad_push() else weights, *rest)

    def tampered_receive(group: Any, *rest: Any) -> Any:
        return receive(BadCard(group) if is_bad_push() and has_the_bad_card() else group, *rest)

    if "VOLLEY_TEST_IN_PUSH" in os.environ:
        stream.send = slow_send
    if "VOLLEY_TEST_BAD_CARD" in os.environ:
        stream.receive = tampered_receive


class Spoilt(importlib.abc.MetaPathFinder):
    """Imports `volley.rollout.transport.stream` with the bad link in it."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> Any:
        if name != "volley.rollout.transport.stream":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            spoil(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Spoilt())
