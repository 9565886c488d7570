"""Whose turn it is to be ranked anew, when estimates have changed."""

from __future__ import annotations

from collections import deque
from typing import Generic

from quietcore.scheduler.lanes import Entry, T


class Turns(Generic[T]):
    """Waiting entries in turn; each is asked once for a change.

    After the next change it goes on where it stopped, or those at the end of a long queue would never be
    reached. ``left`` counts those that have not heard of the last change.
    """

    def __init__(self) -> None:
        self.left = 0
        self._entries: dict[str, Entry[T]] = {}
        self._round: deque[str] = deque()

    def enter(self, entry: Entry[T], change: int) -> None:
        self._entries[entry.job.key] = entry
        self.left += entry.ranked != change

    def leave(self, entry: Entry[T], change: int) -> None:
        del self._entries[entry.job.key]
        self.left -= entry.ranked != change

    def begin(self) -> None:
        """There is a change that none of them has heard of."""
        self.left = len(self._entries)

    def next(self, change: int) -> Entry[T] | None:
        """The next that has not heard of ``change``, which now it has."""
        rounds = 0
        while self.left and rounds < 2:  # one is enough to reach all
            if not self._round:
                rounds += 1
                self._round.extend(self._entries)
            entry = self._entries.get(self._round.popleft())
            if entry is None or entry.ranked == change:
                continue
            entry.ranked = change
            self.left -= 1
            return entry
        return None
