"""One writer, any number of readers, no waiting: a record under a sequence lock.

The sequence is odd while the body is being written and even when it is whole; it grows by two a write. A
checksum over sequence and body makes up for what the lock alone cannot promise here: CPython neither stores
a word in one piece nor says in which order other cores see two stores. So a record that was torn, or left
behind by a writer that died in the middle, is never taken for a whole one.
"""

from __future__ import annotations

import mmap
import struct
import zlib

_HEAD = struct.Struct("<QII")  # sequence, checksum, length of the body
_SEQUENCE = struct.Struct("<Q")
HEAD_SIZE = _HEAD.size
ATTEMPTS = 3

Buffer = mmap.mmap | bytearray | memoryview | bytes


def record_size(body_size: int) -> int:
    """Bytes that a record with such a body takes, a multiple of 64 (a cache line)."""
    return -(-(HEAD_SIZE + body_size) // 64) * 64


class RecordWriter:
    """The only writer of the record at ``offset``; takes over what a former one left."""

    def __init__(self, buffer: mmap.mmap | bytearray | memoryview, offset: int) -> None:
        self._buffer = buffer
        self._offset = offset
        (last,) = _SEQUENCE.unpack_from(buffer, offset)
        self._sequence = (last + 1) & ~1

    def write(self, body: bytes) -> None:
        buffer, offset, sequence = self._buffer, self._offset, self._sequence + 2
        _SEQUENCE.pack_into(buffer, offset, sequence - 1)
        buffer[offset + HEAD_SIZE : offset + HEAD_SIZE + len(body)] = body
        _HEAD.pack_into(buffer, offset, sequence - 1, checksum(sequence, body), len(body))
        _SEQUENCE.pack_into(buffer, offset, sequence)
        self._sequence = sequence


def read_record(buffer: Buffer, offset: int, body_size: int) -> tuple[int, bytes] | None:
    """Sequence and body of the record at ``offset``.

    ``None`` if it is being written at each of three looks, never was written, or is damaged.
    """
    for _ in range(ATTEMPTS):
        sequence, expected, length = _HEAD.unpack_from(buffer, offset)
        if length != body_size or sequence & 1 or not sequence:
            continue
        body = bytes(buffer[offset + HEAD_SIZE : offset + HEAD_SIZE + body_size])
        if checksum(sequence, body) == expected:
            return sequence, body
    return None


def checksum(sequence: int, body: bytes) -> int:
    """CRC-32 of a body, begun with its sequence so that no older body passes for it."""
    return zlib.crc32(body, zlib.crc32(_SEQUENCE.pack(sequence)))
