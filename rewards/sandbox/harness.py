"""The sandboxed process that runs the tests. The program that they call runs in another process.

A test sees the program's functions and classes as remote objects. A call goes over a socket and returns a plain value,
or another remote object, which equals nothing but itself. So the program can answer a call, raise, or end; it cannot
reach the tests, their expected values, their `assert`, or the verdict.
"""

import builtins
import json
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from volley.rewards.sandbox.program import METHODS, OPERATORS
from volley.rewards.sandbox.values import LostError, decode, encode, receive, send

PASSED, FAILED, UNUSABLE = b"1", b"0", b"?"
VERDICTS = {"startswith", "endswith", "issubset", "issuperset", "isdisjoint", "is_integer"}
VERDICTS |= {name for name in dir(str) if name.startswith("is")}


class NotPlainError(TypeError):
    """A test passes the program a value that is not plain."""


def processor_time(pid: int) -> float:
    """Seconds of processor time that a process has used. Raises OSError if it is gone."""
    return time.clock_gettime(~pid << 3 | 2)


def wait_for(descriptor: int, pid: int, seconds: float) -> bool:
    """Whether a descriptor becomes readable before process `pid` uses this many more seconds of processor time.

    At most twice as many seconds of wall-clock time may pass. Processor time is the main limit because a program on a
    busy machine is not slow; the wall-clock limit stops programs that sleep.
    """
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    end, remaining = time.monotonic() + 2 * seconds, seconds
    try:
        limit = processor_time(pid) + seconds
        while remaining > 0:
            if poller.poll(1 + int(1000 * remaining)):
                return True
            remaining = min(limit - processor_time(pid), end - time.monotonic())
    except OSError:
        pass  # the process has ended
    return bool(poller.poll(0))


class Program:
    """The process of the program. The time limit applies to all requests of one test together."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self._connection = connection
        self._pid = pid
        self._remotes: dict[int, Remote] = {}
        self._deadline = self._limit = 0.0
        self.lost = False
        """Whether the program has ended, timed out, or sent an invalid reply."""
        self.unusable = False
        """Whether a test passed the program a value that is not plain."""

    def start_clock(self, seconds: float) -> None:
        """Start the time limit of a test."""
        self._deadline = time.monotonic() + 2 * seconds
        try:
            self._limit = processor_time(self._pid) + seconds
        except OSError:
            self.lost = True
            raise LostError("the program has ended") from None

    def _wait(self) -> None:
        try:
            left = min(self._limit - processor_time(self._pid), self._deadline - time.monotonic())
        except OSError:
            left = 0.0
        if not wait_for(self._connection.fileno(), self._pid, max(left, 0.0)):
            raise LostError("out of time")

    def names(self, names: Sequence[str]) -> dict[str, Any]:
        """The objects of the program with these names, as far as they exist."""
        reply = self._ask("names", list(names), [], {})
        if reply[0] != "names" or not isinstance(reply[1], dict):
            raise LostError("invalid names")
        return {name: decode(form, self._remote) for name, form in reply[1].items() if name in names}

    def do(self, operation: str, target: int, arguments: Sequence[Any], keywords: dict[str, Any]) -> Any:
        """Let the program perform an operation on its object `target`. Raises what the program raised."""
        forms = [encode(each, self._reference) for each in arguments]
        keyword_forms = {name: encode(each, self._reference) for name, each in keywords.items()}
        reply = self._ask(operation, target, forms, keyword_forms)
        if reply[0] == "error":
            raise _exception(operation, reply[1])
        if reply[0] != "value" or not isinstance(reply[2], dict):
            raise LostError("invalid value")
        for index, form in reply[2].items():
            _update(arguments[int(index)], decode(form, self._remote))
        return decode(reply[1], self._remote)

    def _ask(self, *message: Any) -> Any:
        # A test may catch any exception, so the flag decides.
        self.lost = True
        send(self._connection, message)
        reply = receive(self._connection, self._wait)
        if not isinstance(reply, list) or len(reply) not in (2, 3):
            raise LostError("invalid reply")
        self.lost = False
        return reply

    def _remote(self, form: Any) -> "Remote":
        if len(form) != 2 or form[0] != "object" or not isinstance(form[1], int):
            raise LostError("invalid value")
        return self._remotes.setdefault(form[1], Remote(self, form[1]))

    def _reference(self, value: Any) -> Any:
        if isinstance(value, Remote) and value._program is self:
            return ["object", value._number]
        self.unusable = True
        raise NotPlainError(f"a value of type {type(value).__name__} cannot be passed to the program")


class Remote:
    """An object of the program. It supports calls, attributes, items, iteration and conversion to text.

    The program has no influence on comparisons with values of the test: the object equals no such value, has no sum or
    difference with one, contains the values that iteration gives, and lacks the methods in `VERDICTS`, which a plain
    value would have. Two objects of the program are compared and combined by the program.
    """

    __slots__ = ("_number", "_program")

    def __init__(self, program: Program, number: int) -> None:
        object.__setattr__(self, "_program", program)
        object.__setattr__(self, "_number", number)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._program.do("call", self._number, arguments, keywords)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in VERDICTS:
            raise AttributeError(name)
        return self._program.do("get", self._number, (name,), {})

    def __setattr__(self, name: str, value: Any) -> None:
        self._program.do("set", self._number, (name, value), {})

    def __hash__(self) -> int:
        return self._number

    def __bool__(self) -> bool:
        return self._program.do("truth", self._number, (), {}) is True


def _forward(name: str) -> Callable[..., Any]:
    return lambda self, *arguments: self._program.do(name, self._number, arguments, {})


def _forward_pair(name: str) -> Callable[..., Any]:
    def forward(self: Remote, other: Any) -> Any:
        return self._program.do(name, self._number, (other,), {}) if isinstance(other, Remote) else NotImplemented

    return forward


for _name in METHODS:
    setattr(Remote, _name, _forward(_name))
for _name in OPERATORS:
    setattr(Remote, _name, _forward_pair(_name))


def _exception(operation: str, name: Any) -> Exception:
    """The exception that the program reports, if it is built in. StopIteration is allowed in `__next__` only."""
    kind = getattr(builtins, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        return RuntimeError("the program raised a custom exception")
    if issubclass(kind, (StopIteration, StopAsyncIteration)) and operation != "__next__":
        return RuntimeError("the program raised StopIteration")
    try:
        return kind("raised by the program")
    except TypeError:  # UnicodeDecodeError and others require more arguments
        return ValueError("raised by the program")


def _update(argument: Any, changed: Any) -> None:
    """Apply the changes that a function made to an argument."""
    if isinstance(argument, list) and isinstance(changed, list):
        argument[:] = changed
    elif isinstance(argument, (dict, set)) and type(changed) is type(argument):
        argument.clear()
        argument.update(changed)


def run(job: dict[str, Any], connection: socket.socket, pid: int, result: int) -> None:
    """Run the tests one after the other and write one byte for each. Tests after the loss of the program are missing.

    job: `setup` and `tests`, Python text; `names`, names that may refer to the program; `case_s`, see `wait_for`.
    """
    program = Program(connection, pid)
    namespace: dict[str, Any] = {"__name__": "tests"}

    def passes(work: Callable[[], None]) -> bool:
        try:
            program.start_clock(job["case_s"])
            work()
        except BaseException:
            return False
        return not (program.lost or program.unusable)

    def prepare() -> None:
        namespace.update(program.names(job["names"]))
        exec(compile(job["setup"], "setup.py", "exec"), namespace)

    if not passes(prepare):
        os.write(result, UNUSABLE if program.unusable else b"")
        return
    for test in job["tests"]:
        passed = passes(lambda test=test: exec(compile(test, "test.py", "exec"), namespace))  # type: ignore[misc]
        os.write(result, UNUSABLE if program.unusable else PASSED if passed else FAILED)
        if program.lost or program.unusable:
            return


def read_job(text: bytes) -> dict[str, Any]:
    """The job of `run` from JSON."""
    job: dict[str, Any] = json.loads(text)
    return job
