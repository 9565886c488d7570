"""What bcc's Python module does not do well: reading maps by the batch, attaching without samples."""

from __future__ import annotations

import ctypes as ct
import errno
import fcntl
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

_UPROBES = Path("/sys/bus/event_source/devices/uprobe")
_SYS_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}.get(platform.machine(), 298)
_TYPE_TRACEPOINT = 2
_FD_CLOEXEC = 8
_SET_BPF, _ENABLE = 0x40042408, 0x2400
_BATCH_BYTES = 256 * 1024
_MAX_KEYS = 1 << 20
_Struct = TypeVar("_Struct", bound=ct.Structure)


class _PerfEventAttr(ct.Structure):
    """``struct perf_event_attr`` up to PERF_ATTR_SIZE_VER1, as the uprobe PMU reads it."""

    _fields_ = (
        ("type", ct.c_uint32),
        ("size", ct.c_uint32),
        ("config", ct.c_uint64),
        ("sampling", ct.c_uint64 * 4),
        ("wakeup", ct.c_uint32 * 2),
        ("path", ct.c_uint64),
        ("offset", ct.c_uint64),
    )


class BccMap:
    """A map of a compiled module."""

    def __init__(self, lib: Any, name: str, fd: int, cpus: int) -> None:
        self._lib, self.name, self.fd, self._cpus = lib, name, fd, cpus

    def lookup(self, key: ct._SimpleCData[int] | ct.Structure, value: type[_Struct]) -> _Struct | None:
        """The value of ``key``, ``None`` if there is none."""
        out = value()
        return out if self._lib.bpf_lookup_elem(self.fd, ct.byref(key), ct.byref(out)) == 0 else None

    def update(self, key: Any, value: Any, *, only_new: bool = False) -> bool:
        """Store; ``False`` if ``only_new`` and there is one already. Raises OSError."""
        if self._lib.bpf_update_elem(self.fd, ct.byref(key), ct.byref(value), int(only_new)) == 0:
            return True
        if only_new and ct.get_errno() == errno.EEXIST:
            return False
        raise self._error()

    def delete(self, key: Any) -> None:
        """Remove; silent if there is none."""
        self._lib.bpf_delete_elem(self.fd, ct.byref(key))

    def items(self, key: type[Any], value: type[_Struct]) -> Iterator[tuple[Any, _Struct]]:
        """Every entry, in batches where kernel (5.6+) and libbcc can."""
        has_batches = hasattr(self._lib, "bpf_lookup_batch")
        return self._batches(key, value) if has_batches else self._walk(key, value)

    def _batches(self, key: type[Any], value: type[_Struct]) -> Iterator[tuple[Any, _Struct]]:
        batch = max(_BATCH_BYTES // ct.sizeof(value), 16)
        keys, values = (key * batch)(), (value * batch)()
        position, count = ct.c_uint32(0), ct.c_uint32(0)
        start = None
        while True:
            count.value = batch
            code = self._lib.bpf_lookup_batch(
                self.fd, start, ct.byref(position), keys, values, ct.byref(count)
            )
            # ENOENT ends the walk, and the entries before it are good
            if code and ct.get_errno() != errno.ENOENT:
                if start is None and ct.get_errno() in (errno.EINVAL, errno.EOPNOTSUPP):
                    yield from self._walk(key, value)
                    return
                raise self._error()
            for i in range(count.value):
                copied = key.from_buffer_copy(keys[i]) if issubclass(key, ct.Structure) else keys[i]
                yield copied, value.from_buffer_copy(values, i * ct.sizeof(value))
            if code:
                return
            start = ct.byref(position)

    def _walk(self, key: type[Any], value: type[_Struct]) -> Iterator[tuple[Any, _Struct]]:
        # all keys first: a key that is deleted meanwhile would start the walk afresh
        found: list[Any] = []
        while len(found) < _MAX_KEYS:
            following = key()
            last = ct.byref(found[-1]) if found else None
            if self._lib.bpf_get_next_key(self.fd, last, ct.byref(following)):
                break
            found.append(following)
        for one in found:
            out = self.lookup(one, value)
            if out is not None:
                yield one if isinstance(one, ct.Structure) else one.value, out

    def per_cpu(self, index: int, value: type[Any]) -> list[Any]:
        """One row of a per-CPU array: a value a CPU. Sizes are multiples of eight."""
        out = (value * self._cpus)()
        if self._lib.bpf_lookup_elem(self.fd, ct.byref(ct.c_uint32(index)), ct.byref(out)):
            raise self._error()
        return list(out)

    def _error(self) -> OSError:
        return OSError(ct.get_errno(), f"map {self.name}: {os.strerror(ct.get_errno())}")


class PerfEvent:
    """A program on a tracepoint or uprobe, attached. Raises OSError.

    Not by bcc's attach_tracepoint and attach_uprobe: the one asks for samples, which irq_work_exit
    refuses; the other (0.26) leaves out an argument of its own library, and looks for the path
    within the root of the process.
    """

    def __init__(self, program: int, attr: _PerfEventAttr, pid: int, cpu: int) -> None:
        attr.size = ct.sizeof(attr)
        libc = ct.CDLL(None, use_errno=True)
        arguments = (ct.byref(attr), ct.c_int(pid), ct.c_int(cpu), ct.c_int(-1), ct.c_ulong(_FD_CLOEXEC))
        self._fd: int = libc.syscall(_SYS_PERF_EVENT_OPEN, *arguments)
        if self._fd < 0:
            raise OSError(ct.get_errno(), os.strerror(ct.get_errno()))
        try:
            fcntl.ioctl(self._fd, _SET_BPF, program)
            fcntl.ioctl(self._fd, _ENABLE, 0)
        except OSError:
            self.close()
            raise

    @classmethod
    def tracepoint(cls, program: int, number: int) -> PerfEvent:
        """The tracepoint whose file ``id`` holds ``number``; runs on every CPU."""
        return cls(program, _PerfEventAttr(type=_TYPE_TRACEPOINT, config=number), pid=-1, cpu=0)

    @classmethod
    def uprobe(cls, program: int, pid: int, path: str, offset: int, *, on_return: bool) -> PerfEvent:
        """One place of a file, for one process (all its threads)."""
        where = ct.create_string_buffer(os.fsencode(path))
        bit = int((_UPROBES / "format/retprobe").read_text().removeprefix("config:"))
        attr = _PerfEventAttr(
            type=int((_UPROBES / "type").read_text()),
            config=on_return << bit,
            path=ct.addressof(where),
            offset=offset,
        )
        return cls(program, attr, pid, cpu=-1)

    def close(self) -> None:
        """Detach; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
