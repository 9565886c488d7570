"""The record under a sequence lock, torn in every way that can be thought of."""

from __future__ import annotations

import random
import struct

import pytest

from quietcore.scheduler.page.seqlock import HEAD_SIZE, RecordWriter, read_record, record_size

BODY = 200
OFFSET = 64


def body(number: int) -> bytes:
    return struct.pack("<Q", number) * (BODY // 8)


def page(writes: int) -> bytearray:
    buffer = bytearray(OFFSET + record_size(BODY))
    writer = RecordWriter(buffer, OFFSET)
    for number in range(writes):
        writer.write(body(number))
    return buffer


def test_what_was_written_is_read() -> None:
    assert read_record(page(3), OFFSET, BODY) == (6, body(2))


def test_a_record_never_written_is_none() -> None:
    assert read_record(page(0), OFFSET, BODY) is None


def test_another_length_is_none() -> None:
    assert read_record(page(1), OFFSET, BODY - 8) is None


@pytest.mark.parametrize("parity", [0, 1])
def test_any_mixture_of_two_writes_is_none(parity: int) -> None:
    """Each byte from the older or the newer page, as stores may be seen in any order."""
    old, new = page(300), page(301)
    rng = random.Random(parity)
    refused = 0
    for _ in range(10_000):
        cut = rng.randrange(OFFSET, len(old))
        torn = new[:cut] + old[cut:] if rng.random() < 0.5 else old[:cut] + new[cut:]
        torn[OFFSET] |= parity
        found = read_record(torn, OFFSET, BODY)
        assert found in (None, (600, body(299)), (602, body(300)))
        refused += found is None
    assert refused > 5000


def test_a_writer_that_died_midway_is_none_and_the_next_one_goes_on() -> None:
    buffer = page(5)
    struct.pack_into("<Q", buffer, OFFSET, 11)
    assert read_record(buffer, OFFSET, BODY) is None
    RecordWriter(buffer, OFFSET).write(body(7))
    found = read_record(buffer, OFFSET, BODY)
    assert found is not None
    assert found[0] > 11
    assert found[1] == body(7)


def test_one_flipped_bit_is_none() -> None:
    whole = page(2)
    for bit in range(HEAD_SIZE * 8 + BODY * 8):
        flipped = bytearray(whole)
        flipped[OFFSET + bit // 8] ^= 1 << bit % 8
        assert read_record(flipped, OFFSET, BODY) is None
