"""Which process a record belongs to, the same seen from inside its container and from the host."""

from __future__ import annotations

import os
from typing import NamedTuple


class ProcessIdentity(NamedTuple):
    """Inode of the pid namespace, pid inside it, and start time in clock ticks since boot.

    No two processes of a host ever share all three: a pid comes again, but later.
    """

    pid_ns: int = 0
    pid: int = 0
    start_ticks: int = 0

    @classmethod
    def own(cls) -> ProcessIdentity:
        """Of this process; without /proc only its pid."""
        return cls.of(os.getpid(), proc="/proc") or cls(pid=os.getpid())

    @classmethod
    def of(cls, pid: int, proc: str = "/proc") -> ProcessIdentity | None:
        """Of a process by the pid that it has here; ``None`` if it is gone or not ours to see."""
        try:
            namespace = os.stat(f"{proc}/{pid}/ns/pid").st_ino
            with open(f"{proc}/{pid}/stat", "rb") as stat:
                # the state follows the name, which may hold anything
                fields = stat.read().rpartition(b")")[2].split()
            with open(f"{proc}/{pid}/status", "rb") as status:
                inner = next((line.split()[-1] for line in status if line.startswith(b"NSpid:")), b"%d" % pid)
            return cls(namespace, int(inner), int(fields[19]))
        except (OSError, ValueError, IndexError):
            return None

    def is_gone(self) -> bool:
        """Whether the process has surely ended; of one in another pid namespace nobody here can tell."""
        own = self.own()
        if self.pid_ns != own.pid_ns or not own.pid_ns or self.pid <= 0:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            return False  # it is there, and another user's
        found = self.of(self.pid)
        return found is not None and found != self
