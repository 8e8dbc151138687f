"""On PYTHONPATH this stands for a bad network card: of the sixth push a learner sends, one byte is not what left it."""

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any

BAD_PUSH = 6


class Tamper(importlib.abc.MetaPathFinder):
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

            def tampered(*args: Any) -> list[int]:
                pushes[0] += 1
                checksums = send(*args)
                # As if the first bucket had been another one when it was summed up.
                return [checksums[0] ^ 1, *checksums[1:]] if pushes[0] == BAD_PUSH else checksums

            module.send = tampered

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Tamper())
