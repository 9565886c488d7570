"""BPF maps and ring buffers through libbpf. Keys and values are ctypes."""

from __future__ import annotations

import ctypes as ct
import errno
import os
from collections.abc import Iterator
from typing import Any, TypeVar

from quietcore.probes.libbpf import Libbpf, SampleFn

_Struct = TypeVar("_Struct", bound=ct.Structure)
_BATCH_BYTES = 256 * 1024


class Map:
    """A BPF map with fixed key and value types (per-CPU maps: the value of one CPU)."""

    def __init__(self, library: Libbpf, name: str, fd: int) -> None:
        self._library, self._lib, self.name, self.fd = library, library.lib, name, fd

    def lookup(self, key: ct._SimpleCData[int] | ct.Structure, value: type[_Struct]) -> _Struct | None:
        """The value of ``key``, ``None`` if there is none."""
        out = value()
        found = self._lib.bpf_map_lookup_elem(self.fd, ct.byref(key), ct.byref(out)) == 0
        return out if found else None

    def update(self, key: object, value: object, *, only_new: bool = False) -> bool:
        """Store; ``False`` if ``only_new`` and there is one already. Raises OSError."""
        code: int = self._lib.bpf_map_update_elem(
            self.fd,
            ct.byref(key),  # type: ignore[arg-type]
            ct.byref(value),  # type: ignore[arg-type]
            1 if only_new else 0,
        )
        if code == 0:
            return True
        if only_new and -code == errno.EEXIST:
            return False
        raise OSError(-code, f"map {self.name}: {os.strerror(-code)}")

    def delete(self, key: object) -> None:
        """Remove; silent if there is none."""
        self._lib.bpf_map_delete_elem(self.fd, ct.byref(key))  # type: ignore[arg-type]

    def items(self, key: type[Any], value: type[_Struct]) -> Iterator[tuple[Any, _Struct]]:
        """Every entry, read in batches where the kernel can (5.6+)."""
        batch = max(_BATCH_BYTES // ct.sizeof(value), 16)
        keys, values = (key * batch)(), (value * batch)()
        position, count = ct.c_uint64(0), ct.c_uint32(0)
        first = True
        while True:
            count.value = batch
            code: int = self._lib.bpf_map_lookup_batch(
                self.fd,
                None if first else ct.byref(position),
                ct.byref(position),
                keys,
                values,
                ct.byref(count),
                None,
            )
            # ENOENT ends the walk, and the entries before it are good
            if code and -code != errno.ENOENT:
                raise OSError(-code, f"map {self.name}: {os.strerror(-code)}")
            for i in range(count.value):
                yield (
                    key.from_buffer_copy(keys[i]) if issubclass(key, ct.Structure) else keys[i],
                    (value.from_buffer_copy(values[i])),
                )
            if code:
                return
            first = False

    def per_cpu(self, index: int, value: type[Any]) -> list[Any]:
        """One row of a per-CPU array: a value a CPU. Sizes are multiples of eight."""
        out = (value * self._library.cpus)()
        key = ct.c_uint32(index)
        code: int = self._lib.bpf_map_lookup_elem(self.fd, ct.byref(key), ct.byref(out))
        if code:
            raise OSError(-code, f"map {self.name}: {os.strerror(-code)}")
        return list(out)


class RingBuffer:
    """Events of one ring buffer, read when asked or when ``fd`` becomes readable."""

    def __init__(self, library: Libbpf, source: Map, record: type[_Struct]) -> None:
        self._lib = library.lib
        self._record = record
        self._pending: list[ct.Structure] = []
        self._callback = SampleFn(self._take)  # must outlive the buffer
        self._ring = self._lib.ring_buffer__new(source.fd, self._callback, None, None)
        if not self._ring:
            raise OSError(ct.get_errno(), f"ring buffer {source.name}: {os.strerror(ct.get_errno())}")
        self.fd: int = self._lib.ring_buffer__epoll_fd(self._ring)

    def _take(self, _context: int, data: int, size: int) -> int:
        if size >= ct.sizeof(self._record):
            self._pending.append(self._record.from_buffer_copy(ct.string_at(data, ct.sizeof(self._record))))
        return 0

    def consume(self) -> list[ct.Structure]:
        """Everything that has arrived, also what was submitted without a wake-up."""
        self._lib.ring_buffer__consume(self._ring)
        taken, self._pending = self._pending, []
        return taken

    def close(self) -> None:
        """Unmap."""
        if self._ring:
            self._lib.ring_buffer__free(self._ring)
            self._ring = None
