"""The sandboxed process of the untrusted program, which runs as a script or as a module that is called.

Nothing that this process reports about itself is trusted. It knows the inputs, never the expected outputs.
"""

import atexit
import builtins
import io
import operator
import os
import socket
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

from volley.rewards.sandbox.values import LostError, decode, encode, receive, send

OUTPUT_BUFFER = 1 << 16
MAX_ERROR = 200


def run_script(source: bytes) -> int:
    """Run a program like `python program.py`, with the descriptors 0, 1 and 2. Returns its exit status."""
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8")
    output = io.BufferedWriter(io.FileIO(1, "w", closefd=False), OUTPUT_BUFFER)
    sys.stdout = io.TextIOWrapper(output, "utf-8", "backslashreplace")
    vars(sys).update(__stdin__=sys.stdin, __stdout__=sys.stdout)
    status = _status(lambda: _execute(source, "__main__"))
    # What the interpreter does at exit: programs of competitions start threads and print at exit.
    for at_exit in (threading._shutdown, atexit._run_exitfuncs, lambda: sys.stdout.flush()):  # type: ignore[attr-defined]
        status = _status(at_exit) or status
    return status


def serve(source: bytes, connection: socket.socket) -> int:
    """Run a program as a module, then serve the requests of the tests on the connection. Returns its exit status."""
    module = _execute(source, "solution")
    objects: dict[int, Any] = {}

    def reference(value: Any) -> Any:
        objects[id(value)] = value
        return ["object", id(value)]

    def to_json(value: Any) -> Any:
        return encode(value, reference)

    def from_json(form: Any) -> Any:
        return decode(form, lambda each: objects[each[1]])

    while True:
        try:
            operation, target, arguments, keywords = receive(connection)
        except LostError:
            return 0
        try:
            if operation == "names":
                defined = {name: getattr(module, name) for name in target if hasattr(module, name)}
                values = {name: each for name, each in defined.items() if not isinstance(each, types.ModuleType)}
                reply = {name: to_json(each) for name, each in values.items()}
                send(connection, ["names", reply])
                continue
            arguments = [from_json(each) for each in arguments]
            before = [to_json(each) if isinstance(each, (list, dict, set)) else None for each in arguments]
            keywords = {name: from_json(each) for name, each in keywords.items()}
            value = _OPERATIONS[operation](objects[target], *arguments, **keywords)
            after = [None if form is None else to_json(each) for form, each in zip(before, arguments, strict=True)]
            changed = {index: form for index, form in enumerate(after) if form != before[index]}
            send(connection, ["value", to_json(value), changed])
        except BaseException as error:
            send(connection, ["error", type(error).__name__, str(error)[:MAX_ERROR]])


# Special methods that a remote object of the tests forwards.
METHODS: dict[str, Callable[..., Any]] = {
    "__len__": len,
    "__iter__": iter,
    "__next__": next,
    "__getitem__": operator.getitem,
    "__setitem__": operator.setitem,
    "__delitem__": operator.delitem,
    "__str__": str,
    "__repr__": repr,
    "__int__": int,
    "__float__": float,
}
# Operators that it forwards if both operands are remote.
OPERATORS: dict[str, Callable[..., Any]] = {
    "__eq__": operator.eq,
    "__lt__": operator.lt,
    "__le__": operator.le,
    "__gt__": operator.gt,
    "__ge__": operator.ge,
    "__add__": operator.add,
    "__sub__": operator.sub,
    "__mul__": operator.mul,
    "__truediv__": operator.truediv,
    "__and__": operator.and_,
    "__or__": operator.or_,
}
_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda target, *arguments, **keywords: target(*arguments, **keywords),
    "get": getattr,
    "set": setattr,
    "truth": bool,
    **METHODS,
    **OPERATORS,
}


def _execute(source: bytes, name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    sys.modules[name] = module
    # The module `site`, which defines these, is not loaded.
    vars(builtins).update(exit=sys.exit, quit=sys.exit)
    exec(compile(source, "program.py", "exec", dont_inherit=True), vars(module))
    return module


def _status(run: Callable[[], Any]) -> int:
    try:
        run()
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            return int(leaving.code or 0) & 0xFF
        return 1
    except BaseException:
        return 1
    return 0


def redirect(stdin: int, stdout: int, stderr: int, keep: int = 3) -> None:
    """Make these the descriptors 0, 1 and 2, and close all others except `keep`."""
    for number, descriptor in enumerate((stdin, stdout, stderr)):
        os.dup2(descriptor, number)
    os.closerange(3, keep)
    os.closerange(max(keep, 2) + 1, os.sysconf("SC_OPEN_MAX"))
