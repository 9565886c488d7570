"""Levers on the host: where interrupts go, what a cpuset allows, what irqbalance leaves alone."""

from __future__ import annotations

import os
import re
import socket
import struct
from pathlib import Path
from typing import ClassVar

from quietcore.agent.pin.levers import CpuListLever, GoneError, Lever, RefusedError, kernel_answers
from quietcore.agent.pin.things import Balancer, CpusetDir, IrqLine, Thing, Value
from quietcore.probes import proc
from quietcore.probes.host.finding import format_list, parse_list, read_text, try_read
from quietcore.probes.topology import irq_name, is_managed

SOCKETS = Path("/run/irqbalance")
_CPUS = "cpuset.cpus"
_EFFECTIVE = "cpuset.cpus.effective"  # v2 only
_CREDENTIALS = 2  # SCM_CREDENTIALS of linux/socket.h
_PATIENCE_S = 2.0


class IrqAffinity(CpuListLever):
    """The CPUs that a device interrupt may go to."""

    name: ClassVar[str] = "irq"
    thing: ClassVar[type[Thing]] = IrqLine
    word: ClassVar[str] = "CPUs"

    def read(self, thing: IrqLine) -> Value:
        with kernel_answers():
            return format_list(parse_list(read_text(self._path(thing))))

    def write(self, thing: IrqLine, value: Value) -> None:
        path = self._path(thing)
        if is_managed(thing.number):
            raise RefusedError("managed: the kernel itself places it")
        with kernel_answers():
            path.write_text(str(value))

    @staticmethod
    def _path(thing: IrqLine) -> Path:
        if irq_name(thing.number) != thing.name:
            raise GoneError(f"{thing} is gone")
        return proc.PROC / "irq" / str(thing.number) / "smp_affinity_list"


class Cpuset(CpuListLever):
    """What a cgroup (cpuset controller, v1 or v2) allows its processes; empty (v2): all of its parent's."""

    name: ClassVar[str] = "cpuset"
    thing: ClassVar[type[Thing]] = CpusetDir
    word: ClassVar[str] = "CPUs"

    def read(self, thing: CpusetDir) -> Value:
        path = self._directory(thing) / _CPUS
        with kernel_answers():
            return format_list(parse_list(read_text(path)))

    def write(self, thing: CpusetDir, value: Value) -> None:
        directory = self._directory(thing)
        with kernel_answers():
            before = read_text(directory / _CPUS)
            # an empty write would not reach the kernel
            (directory / _CPUS).write_text(f"{value}\n")
            granted = try_read(directory / _EFFECTIVE)
            if value and granted and parse_list(granted) != parse_list(str(value)):
                (directory / _CPUS).write_text(f"{before}\n")
                raise RefusedError(f"the cgroups above allow only {granted}")

    @staticmethod
    def _directory(thing: CpusetDir) -> Path:
        directory = Path(thing.path)
        with kernel_answers():
            inode = directory.stat().st_ino
        # a journal must not lead us to a file that is no cgroup's
        if inode != thing.inode or not (directory / "cgroup.procs").exists():
            raise GoneError(f"{thing} is gone")
        return directory


class BalancerBan(Lever):
    """The interrupts that a running irqbalance leaves alone: numbers with spaces between.

    It keeps them in memory only: they are gone when it ends.
    """

    name: ClassVar[str] = "irqbalance"
    thing: ClassVar[type[Thing]] = Balancer
    word: ClassVar[str] = "banned IRQs"

    def read(self, thing: Balancer) -> Value:
        answer = self._ask(thing, "setup")
        if not answer.startswith("SLEEP"):
            raise RefusedError(f"irqbalance answers {answer[:40]!r}")
        return " ".join(sorted(set(re.findall(r"\bIRQ (\d+)\b", answer)), key=int))

    def write(self, thing: Balancer, value: Value) -> None:
        self._ask(thing, f"settings ban irqs {value or 'NONE'}")

    def check(self, value: object) -> Value:
        if not isinstance(value, str) or not re.fullmatch(r"(\d+( \d+)*)?", value):
            raise ValueError(f"{value!r} is no list of interrupts")
        return value

    @staticmethod
    def _ask(thing: Balancer, command: str) -> str:
        stat = proc.read_stat(thing.pid)
        if stat is None or stat.started != thing.started:
            raise GoneError(f"{thing} is gone")
        name = f"irqbalance{thing.pid}.sock"
        path = SOCKETS / name
        address = str(path) if path.exists() else f"\0{name}"  # until 1.5 it had no file
        identity = struct.pack("3i", os.getpid(), os.geteuid(), os.getegid())
        with kernel_answers(), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(_PATIENCE_S)
            try:
                link.connect(address)
            except (FileNotFoundError, ConnectionRefusedError) as e:
                raise RefusedError(f"irqbalance cannot be asked: no socket {path}") from e
            link.sendmsg([command.encode()], [(socket.SOL_SOCKET, _CREDENTIALS, identity)])
            answer = b""
            while more := link.recv(65536):
                answer += more
        return answer.decode(errors="replace")


def find_balancer() -> Balancer | None:
    """A running irqbalance."""
    for pid in proc.process_ids():
        stat = proc.read_stat(pid)
        if stat is not None and stat.comm == "irqbalance" and stat.state not in proc.OVER:
            return Balancer(pid, stat.started)
    return None
