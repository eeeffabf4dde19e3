"""Frames of bounded length over pipes: four bytes of length, then the payload."""

from __future__ import annotations

import os

_HEADER_BYTES = 4
_CHUNK_BYTES = 1 << 16


def send(descriptor: int, payload: bytes) -> None:
    """Writes one frame to a blocking pipe."""
    waiting = memoryview(header(payload) + payload)
    while waiting:
        waiting = waiting[os.write(descriptor, waiting) :]


def receive(descriptor: int, limit: int) -> bytes:
    """Reads one frame from a blocking pipe.

    Raises:
      EOFError: the other end is closed, or the frame is longer than `limit` bytes.
    """
    length = int.from_bytes(_read(descriptor, _HEADER_BYTES), "big")
    if length > limit:
        raise EOFError(f"a frame of {length} bytes, allowed are {limit}")
    return _read(descriptor, length)


def header(payload: bytes) -> bytes:
    """The bytes before a payload."""
    return len(payload).to_bytes(_HEADER_BYTES, "big")


def _read(descriptor: int, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        chunk = os.read(descriptor, min(length - len(parts), _CHUNK_BYTES))
        if not chunk:
            raise EOFError("the other end is closed")
        parts += chunk
    return bytes(parts)
