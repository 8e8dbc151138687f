"""On PYTHONPATH this stands for a bad link between a learner and its engines; the variable that is set says which.

VOLLEY_TEST_IN_PUSH: a slow one. The sixth and twelfth push that a learner sends rest in their middle, and say so by
making the file that the variable names. VOLLEY_TEST_BAD_CARD: one with a bad network card. Of the sixth push that one
engine receives, a byte is not what was sent; which engine: the first that creates the file that the variable names.
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
REST_S = 4.0


def slowed(weights: Iterable[Any], middle: int) -> Iterator[Any]:
    for i, weight in enumerate(weights):
        if i == middle:
            Path(os.environ["VOLLEY_TEST_IN_PUSH"]).touch()
            time.sleep(REST_S)
        yield weight


class Work:
    """A broadcast that has a byte flipped when it has arrived."""

    def __init__(self, work: Any, bucket: Any) -> None:
        self._work, self._bucket = work, bucket

    def wait(self) -> None:
        self._work.wait()
        self._bucket[len(self._bucket) // 2] ^= 1


class BadCard:
    """A group whose first bucket comes wrong."""

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
    """Put the bad link in place of the module's `send` or `receive`."""
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
    """Hands out `volley.rollout.transport.stream` with the bad link in it."""

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
