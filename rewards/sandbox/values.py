"""Plain values as JSON, for messages between the tests and the program that they call.

None, bool, int, float and str are unchanged; everything else becomes a list that starts with its type. Subclasses are
sent as their base class, which removes whatever a program has added to a value (such as an `__eq__` that is always
true).
"""

import collections
import decimal
import fractions
import json
import socket
import struct
from collections.abc import Callable
from typing import Any

LENGTH = struct.Struct(">I")
MAX_MESSAGE = 8 << 20
MAX_JSON_INT = 1 << 62


class LostError(Exception):
    """The other side is gone, took too long, or sent an invalid message."""


def encode(value: Any, other: Callable[[Any], Any]) -> Any:
    """Convert a value to JSON types. other: converts values that are not plain, or raises."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if -MAX_JSON_INT < value < MAX_JSON_INT else ["int", hex(value)]
    if isinstance(value, (float, str)):
        return float(value) if isinstance(value, float) else str.__str__(value)
    for kind, base in _SEQUENCES.items():
        if isinstance(value, base):
            return [kind, *(encode(each, other) for each in base.__iter__(value))]
    if isinstance(value, dict):
        return ["dict", *([encode(key, other), encode(each, other)] for key, each in dict.items(value))]
    for kind, (base, to_text, _) in _AS_TEXT.items():
        if isinstance(value, base):
            return [kind, to_text(value)]
    return other(value)


def decode(form: Any, other: Callable[[Any], Any]) -> Any:
    """The inverse of `encode`. other: converts back values that are not plain. Raises LostError for invalid forms."""
    if not isinstance(form, list):
        if isinstance(form, dict):
            raise LostError("invalid value")
        return form
    try:
        kind, *parts = form
        if kind in _SEQUENCES:
            return _SEQUENCES[kind](decode(each, other) for each in parts)
        if kind == "dict":
            return {decode(key, other): decode(each, other) for key, each in parts}
        if kind in _AS_TEXT:
            return _AS_TEXT[kind][2](parts[0])
    except (TypeError, ValueError, IndexError, ArithmeticError) as error:
        raise LostError("invalid value") from error
    return other(form)


_SEQUENCES: dict[str, Any] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": collections.deque,
}
_AS_TEXT: dict[str, tuple[Any, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "int": (int, hex, lambda text: int(text, 16)),
    "bytes": (bytes, bytes.hex, bytes.fromhex),
    "bytearray": (bytearray, bytearray.hex, bytearray.fromhex),
    "complex": (complex, lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
    "range": (range, lambda value: [value.start, value.stop, value.step], lambda parts: range(*parts)),
    "fraction": (fractions.Fraction, str, fractions.Fraction),
    "decimal": (decimal.Decimal, str, decimal.Decimal),
}


def send(connection: socket.socket, message: Any) -> None:
    """Send a message. Raises ValueError if it is too long, LostError if the other side is gone."""
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > MAX_MESSAGE:
        raise ValueError(f"a value takes more than {MAX_MESSAGE} bytes")
    try:
        connection.sendall(LENGTH.pack(len(body)) + body)
    except OSError as error:
        raise LostError("the other side is gone") from error


def receive(connection: socket.socket, wait: Callable[[], None] = lambda: None) -> Any:
    """The next message. wait: called before each read. Raises LostError."""

    def take(num_bytes: int) -> bytes:
        buffer = bytearray()
        while len(buffer) < num_bytes:
            wait()
            chunk = connection.recv(min(num_bytes - len(buffer), 1 << 16))
            if not chunk:
                raise LostError("the program has ended")
            buffer += chunk
        return bytes(buffer)

    try:
        (length,) = LENGTH.unpack(take(LENGTH.size))
        if length > MAX_MESSAGE:
            raise LostError("the message is too long")
        return json.loads(take(length))
    except (OSError, ValueError, RecursionError) as error:
        raise LostError("invalid message") from error
