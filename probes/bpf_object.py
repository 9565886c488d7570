"""BPF objects through libbpf: open, choose programs, load, attach."""

from __future__ import annotations

import ctypes as ct
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from quietcore.probes.bpf_maps import Map
from quietcore.probes.errors import BackendUnavailableError
from quietcore.probes.libbpf import Libbpf, UprobeOptions

_BPF_LINK_CREATE = 28
_BPF_TRACE_UPROBE_MULTI = 48
_UPROBE_MULTI_RETURN = 1


class _UprobeMultiAttr(ct.Structure):
    """The part of ``union bpf_attr`` that BPF_LINK_CREATE reads for uprobe_multi."""

    _fields_ = (
        ("prog_fd", ct.c_uint32),
        ("target_fd", ct.c_uint32),
        ("attach_type", ct.c_uint32),
        ("flags", ct.c_uint32),
        ("path", ct.c_uint64),
        ("offsets", ct.c_uint64),
        ("ref_ctr_offsets", ct.c_uint64),
        ("cookies", ct.c_uint64),
        ("cnt", ct.c_uint32),
        ("multi_flags", ct.c_uint32),
        ("pid", ct.c_uint32),
        ("pad", ct.c_uint32),
    )


class Link:
    """An attached program. Closing detaches it."""

    def __init__(self, close: Callable[[], object]) -> None:
        self._close: Callable[[], object] | None = close

    def close(self) -> None:
        """Detach; a second call does nothing."""
        close, self._close = self._close, None
        if close:
            close()


class BpfObject:
    """One object file: open, choose programs, load, attach, close.

    Args:
        library: the loaded libbpf.
        path: the compiled object.
        shared: maps of objects loaded before; maps of the same name are taken from there.
    """

    def __init__(self, library: Libbpf, path: Path, shared: dict[str, Map] | None = None) -> None:
        self._library, self._lib, self.path = library, library.lib, path
        self._shared = shared or {}
        self.maps: dict[str, Map] = {}
        if not path.exists():
            raise BackendUnavailableError(
                "libbpf", "open", f"{path.name} is missing", "build it: python probes/_compile.py"
            )
        ct.set_errno(0)
        self._object = self._lib.bpf_object__open_file(str(path).encode(), None)
        if not self._object:
            raise self._error("open", ct.get_errno())
        self.programs = dict(self._walk("program"))
        self._map_pointers = dict(self._walk("map"))

    def _walk(self, what: str) -> Iterator[tuple[str, int]]:
        following = getattr(self._lib, f"bpf_object__next_{what}")
        name = getattr(self._lib, f"bpf_{what}__name")
        item = following(self._object, None)
        while item:
            yield name(item).decode(), item
            item = following(self._object, item)

    def _error(self, step: str, code: int, what: str = "") -> BackendUnavailableError:
        reason = os.strerror(abs(code)) if code else "unknown error"
        remedy = {
            errno.EPERM: "run as root, or give CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN",
            errno.EACCES: "run as root; see the verifier's log with doctor",
            errno.ESRCH: "the kernel has no BTF (CONFIG_DEBUG_INFO_BTF): use --backend bcc",
        }.get(abs(code), "run quietcore doctor for the log")
        cause = f"{what or self.path.name}: {reason}"
        return BackendUnavailableError("libbpf", step, cause, remedy, self._library.take_messages())

    def enable(self, names: set[str]) -> None:
        """Load only these programs."""
        for name, program in self.programs.items():
            self._lib.bpf_program__set_autoload(program, name in names)

    def set_multi(self, names: set[str]) -> None:
        """Load these uprobe programs for uprobe_multi links."""
        for name in names:
            self._lib.bpf_program__set_expected_attach_type(self.programs[name], _BPF_TRACE_UPROBE_MULTI)

    def resize(self, name: str, entries: int) -> None:
        """Set ``max_entries`` of a map that is not loaded yet."""
        self._lib.bpf_map__set_max_entries(self._map_pointers[name], entries)

    def load(self) -> None:
        """Create the maps and verify the enabled programs. Raises BackendUnavailableError."""
        for name, pointer in self._map_pointers.items():
            if name in self._shared:
                self._lib.bpf_map__reuse_fd(pointer, self._shared[name].fd)
        code = self._lib.bpf_object__load(self._object)
        if code:
            raise self._error("load", code)
        for name, pointer in self._map_pointers.items():
            self.maps[name] = Map(self._library, name, self._lib.bpf_map__fd(pointer))

    def attach(self, name: str) -> Link:
        """Attach by the program's section. Raises BackendUnavailableError."""
        ct.set_errno(0)
        link = self._lib.bpf_program__attach(self.programs[name])
        if not link:
            raise self._error("attach", ct.get_errno(), name)
        return Link(lambda: self._lib.bpf_link__destroy(link))

    def attach_uprobe(
        self, name: str, pid: int, path: str, offset: int, cookie: int, *, on_return: bool
    ) -> Link:
        """One perf uprobe for one process (all its threads). Raises BackendUnavailableError."""
        options = UprobeOptions(ct.sizeof(UprobeOptions), 0, cookie, on_return, None)
        ct.set_errno(0)
        link = self._lib.bpf_program__attach_uprobe_opts(
            self.programs[name], pid, path.encode(), offset, ct.byref(options)
        )
        if not link:
            raise self._error("attach", ct.get_errno(), f"{name} at {path}+{offset:#x}")
        return Link(lambda: self._lib.bpf_link__destroy(link))

    def attach_uprobe_multi(
        self, name: str, pid: int, path: str, offsets: list[int], cookies: list[int], *, on_return: bool
    ) -> Link:
        """Many uprobes by one link: milliseconds to attach and detach, however many. Raises OSError."""
        where = ct.create_string_buffer(path.encode())
        at = (ct.c_uint64 * len(offsets))(*offsets)
        with_cookie = (ct.c_uint64 * len(cookies))(*cookies)
        attr = _UprobeMultiAttr(
            prog_fd=self._lib.bpf_program__fd(self.programs[name]),
            attach_type=_BPF_TRACE_UPROBE_MULTI,
            path=ct.addressof(where),
            offsets=ct.addressof(at),
            cookies=ct.addressof(with_cookie),
            cnt=len(offsets),
            multi_flags=_UPROBE_MULTI_RETURN if on_return else 0,
            pid=pid,
        )
        fd = self._library.bpf(_BPF_LINK_CREATE, attr)
        return Link(lambda: os.close(fd))

    def program_fd(self, name: str) -> int:
        """The file descriptor of a loaded program."""
        fd: int = self._lib.bpf_program__fd(self.programs[name])
        return fd

    def close(self) -> None:
        """Unload programs and maps. Links are closed by their owner, before."""
        if self._object:
            self._lib.bpf_object__close(self._object)
            self._object = None
