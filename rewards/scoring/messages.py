"""The messages between the driver and a scoring process: JSON after a length of four bytes, big-endian.

    to the process    {"terms", "columns", "path", "cpu_s", "memory_bytes", "network"}             once
                      [[term, ...], [text] or null, prompt, response, answer, num_tokens, truncated, row]  each item
    from the process  ["loading", reward name], ["alive"], then ["ready"] or ["failed", message]
                      [term, value or null, error, seconds, must_exit]                             each term, in order

Nothing is ever unpickled.
"""

import json
import socket
import struct
from collections.abc import Iterator
from typing import Any

LENGTH = struct.Struct(">I")
_JSON = json.JSONEncoder(separators=(",", ":"))


def encode(message: Any) -> bytes:
    """A message with its length. Raises TypeError for values that JSON cannot represent."""
    body = _JSON.encode(message).encode()
    return LENGTH.pack(len(body)) + body


def decode(buffer: bytearray) -> Iterator[Any]:
    """Remove the complete messages from the start of `buffer` and yield them."""
    while len(buffer) >= LENGTH.size:
        end = LENGTH.size + LENGTH.unpack_from(buffer)[0]
        if len(buffer) < end:
            return
        body = bytes(buffer[LENGTH.size : end])
        del buffer[:end]
        yield json.loads(body)


def receive(connection: socket.socket) -> Iterator[Any]:
    """The messages that arrive, until the other side closes the connection."""
    buffer = bytearray()
    while chunk := connection.recv(1 << 18):
        buffer += chunk
        yield from decode(buffer)
