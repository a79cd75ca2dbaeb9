"""Frames over pipes and sockets: four bytes of length, big-endian, then the content."""

from __future__ import annotations

import json
import os
import socket
import struct
from typing import Any

MAX_FRAME = 256 << 20


class Closed(Exception):
    """The other end is gone."""


def write_frame(descriptor: int, content: bytes) -> None:
    """Writes all of it. Raises Closed."""
    view = memoryview(struct.pack(">I", len(content)) + content)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        raise Closed(str(error)) from error


def read_frame(descriptor: int, max_bytes: int) -> bytes:
    """One frame. Raises Closed at the end of the stream, OverflowError for a frame beyond the limit."""
    (size,) = struct.unpack(">I", _exactly(descriptor, 4))
    if size > max_bytes:
        raise OverflowError(f"a frame of {size} bytes; the limit is {max_bytes}")
    return _exactly(descriptor, size)


def _exactly(descriptor: int, size: int) -> bytes:
    content = bytearray()
    while len(content) < size:
        try:
            chunk = os.read(descriptor, min(size - len(content), 1 << 20))
        except OSError as error:
            raise Closed(str(error)) from error
        if not chunk:
            raise Closed("end of stream")
        content += chunk
    return bytes(content)


def framed(message: dict[str, Any]) -> bytes:
    """A JSON message with its length. Raises ValueError for one beyond the limit."""
    content = json.dumps(message).encode()
    if len(content) > MAX_FRAME:
        raise ValueError(f"a program with its tests takes {len(content)} bytes; the limit is {MAX_FRAME}")
    return struct.pack(">I", len(content)) + content


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    """Writes a message to somebody who reads. Raises OSError."""
    connection.sendall(framed(message))


def receive(connection: socket.socket, max_descriptors: int = 0) -> tuple[dict[str, Any], list[int]]:
    """A message and its descriptors. Raises Closed."""
    try:
        header, descriptors, _, _ = socket.recv_fds(connection, 4, max_descriptors)
        if not header:
            raise Closed("end of stream")
        header += _exactly(connection.fileno(), 4 - len(header)) if len(header) < 4 else b""
        message: dict[str, Any] = json.loads(_exactly(connection.fileno(), struct.unpack(">I", header)[0]))
    except OSError as error:
        raise Closed(str(error)) from error
    return message, descriptors
