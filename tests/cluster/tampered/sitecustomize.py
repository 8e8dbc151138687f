"""On PYTHONPATH this stands for a bad network card in one machine: of the sixth push that one engine receives, a byte
is not what was sent. Which engine: the first that creates the file named by the variable TAMPERED."""

import importlib.abc
import importlib.machinery
import os
import sys
from types import ModuleType
from typing import Any

BAD_PUSH = 6


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
        os.close(os.open(os.environ["TAMPERED"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


class Tamper(importlib.abc.MetaPathFinder):
    """Hands out `rollout.transport.stream` with another `receive`."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> Any:
        if name != "rollout.transport.stream":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            receive, pushes = module.receive, [0]

            def tampered(group: Any, *args: Any) -> list[int]:
                pushes[0] += 1
                return receive(BadCard(group) if pushes[0] == BAD_PUSH and has_the_bad_card() else group, *args)

            module.receive = tampered

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Tamper())
