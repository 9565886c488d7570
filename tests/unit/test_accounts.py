"""Filling the maps of the kernel side: what finds no room is said, and what is over leaves the filter."""

from __future__ import annotations

import ctypes as ct
import errno
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from quietcore.probes import accounts as module
from quietcore.probes import layout, proc
from quietcore.probes.accounts import MAX_PROCESSES, Accounts
from quietcore.probes.errors import MeasureError, TargetGoneError

_Struct = TypeVar("_Struct", bound=ct.Structure)
BPF = Path(module.__file__).parent / "bpf"


class FakeMap:
    """Holds up to ``room`` entries."""

    def __init__(self, room: int = 100) -> None:
        self.room = room
        self.entries: dict[int, Any] = {}

    def lookup(self, key: Any, value: type[_Struct]) -> _Struct | None:
        return self.entries.get(key.value)

    def update(self, key: Any, value: object, *, only_new: bool = False) -> bool:
        if key.value not in self.entries and len(self.entries) >= self.room:
            raise OSError(errno.E2BIG, f"map: {os.strerror(errno.E2BIG)}")
        if only_new and key.value in self.entries:
            return False
        self.entries[key.value] = value
        return True

    def delete(self, key: Any) -> None:
        self.entries.pop(key.value, None)

    def items(self, key: type[Any], value: type[_Struct]) -> Iterator[tuple[Any, _Struct]]:
        return iter(list(self.entries.items()))

    def per_cpu(self, index: int, value: type[Any]) -> list[Any]:
        return list((value * 2)())


@pytest.fixture
def maps() -> dict[str, FakeMap]:
    return {
        name: FakeMap()
        for name in ("targets", "threads", "blames", "wakes", "irq_times", "irq_totals", "losses")
    }


@pytest.fixture
def accounts(maps: dict[str, FakeMap]) -> Accounts:
    return Accounts("libbpf", maps)


def test_threads_are_seeded_once(accounts: Accounts, maps: dict[str, FakeMap]) -> None:
    accounts.add_process(os.getpid())
    assert list(maps["targets"].entries) == [os.getpid()]
    assert os.getpid() in maps["threads"].entries
    assert accounts.snapshot().losses == dict.fromkeys(layout.LOSSES, 0)
    accounts.add_process(os.getpid())
    assert accounts.snapshot().threads[os.getpid()].tgid == os.getpid()


def test_threads_without_room_are_counted_as_lost(accounts: Accounts, maps: dict[str, FakeMap]) -> None:
    over = threading.Event()
    threads = [threading.Thread(target=over.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    maps["threads"].room = 1
    try:
        accounts.add_process(os.getpid())
        there = len(proc.thread_ids(os.getpid()))
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert accounts.snapshot().losses["threads"] == there - 1


def test_too_many_processes(accounts: Accounts, maps: dict[str, FakeMap]) -> None:
    maps["targets"].room = 0
    with pytest.raises(MeasureError, match=r"more than 4,096 processes: .*; name fewer, by .*cgroup"):
        accounts.add_process(os.getpid())
    assert maps["threads"].entries == {}


@pytest.mark.parametrize("source", ["sched.bpf.c", "bcc.c"])
def test_the_room_is_that_of_the_maps(source: str) -> None:
    declared = re.search(r"HASH(?:_MAP)?\(targets, .*, (\d+)\)", (BPF / source).read_text())
    assert declared is not None
    assert int(declared[1]) == MAX_PROCESSES


def test_a_process_that_ended_leaves_the_filter(accounts: Accounts, maps: dict[str, FakeMap]) -> None:
    accounts.add_process(os.getpid())
    accounts.end_process(os.getpid())
    assert maps["targets"].entries == {}
    assert os.getpid() in maps["threads"].entries


def test_a_process_that_ends_while_it_is_added(
    accounts: Accounts, maps: dict[str, FakeMap], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number must not stay in the filter for whoever gets it next."""
    looks = iter([[7]])

    def thread_ids(_: int) -> list[int]:
        for tids in looks:
            return tids
        raise TargetGoneError("process 7 does not exist")

    monkeypatch.setattr(proc, "thread_ids", thread_ids)
    with pytest.raises(TargetGoneError):
        accounts.add_process(7)
    assert maps["targets"].entries == {}
