"""On PYTHONPATH this stands for a slow link: the sixth push that a learner sends rests in its middle, and says so by
making the file that VOLLEY_TEST_IN_PUSH names."""

import importlib.abc
import importlib.machinery
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

SLOW_PUSH = 6
REST_S = 4.0


def slowed(weights: Iterable[Any], middle: int) -> Iterator[Any]:
    for i, weight in enumerate(weights):
        if i == middle:
            Path(os.environ["VOLLEY_TEST_IN_PUSH"]).touch()
            time.sleep(REST_S)
        yield weight


class Slow(importlib.abc.MetaPathFinder):
    """Hands out `rollout.transport.stream` with another `send`."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> Any:
        if name != "rollout.transport.stream":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            send, pushes = module.send, [0]

            def slow_send(group: Any, plan: Any, weights: Iterable[Any], *rest: Any) -> Any:
                pushes[0] += 1
                if pushes[0] == SLOW_PUSH:
                    weights = slowed(weights, len(plan.metas) // 2)
                return send(group, plan, weights, *rest)

            module.send = slow_send

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Slow())
