"""The CUDA libraries that a process has mapped, and where to put uprobes into them.

A library is the file with a certain (device, inode), not a path: with two virtual environments, containers
and deleted files, paths lie. The driver comes first, since every CUDA program passes through it; probing the
runtime as well would count each call twice. The files belong to those who are watched, so nothing in them is
trusted: reads are bounded, and nothing is mapped (a file cut short while it is mapped kills the reader).
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from quietcore.probes.elf import BoundedFile, exported_functions, local_functions
from quietcore.probes.errors import MeasureError
from quietcore.probes.prologue import Architecture, KernelVersion, ProbePoint, choose_probe_point

ApiClass = Literal["launch", "graph_launch", "sync", "copy", "alloc"]
Layer = Literal["driver", "runtime"]
LibraryKind = Literal["driver", "runtime", "static-runtime"]

API_CLASSES: tuple[ApiClass, ...] = ("launch", "graph_launch", "sync", "copy", "alloc")
"""Their order is that of ``enum api_class`` in bpf/layout.h."""


class ApiSymbol(NamedTuple):
    """What a probed symbol stands for. ``api_id`` is in 1..63 and never changes its meaning."""

    api_id: int
    api: str
    api_class: ApiClass
    layer: Layer


# Where a symbol has a _ptsz twin (per-thread default stream), the next id is the twin's. __cudaLaunchKernel
# is missing on purpose: it jumps to cudaLaunchKernel (seen in CUDA 13.0) and would count twice.
_SYMBOLS: tuple[tuple[int, str, ApiClass, bool], ...] = (
    (1, "cuLaunchKernel", "launch", True),
    (3, "cuLaunchKernelEx", "launch", True),
    (5, "cuLaunchCooperativeKernel", "launch", True),
    (7, "cuGraphLaunch", "graph_launch", True),
    (9, "cuStreamSynchronize", "sync", True),
    (11, "cuEventSynchronize", "sync", False),
    (13, "cuCtxSynchronize", "sync", False),
    (14, "cuCtxSynchronize_v2", "sync", False),
    (15, "cuMemcpyAsync", "copy", True),
    (17, "cuMemcpyHtoDAsync_v2", "copy", True),
    (19, "cuMemcpyDtoHAsync_v2", "copy", True),
    (21, "cuMemAlloc_v2", "alloc", False),
    (22, "cuMemFree_v2", "alloc", False),
    (32, "cudaLaunchKernel", "launch", True),
    (34, "cudaLaunchKernelExC", "launch", True),
    (36, "cudaLaunchCooperativeKernel", "launch", True),
    (38, "cudaGraphLaunch", "graph_launch", True),
    (40, "cudaStreamSynchronize", "sync", True),
    (42, "cudaEventSynchronize", "sync", False),
    (44, "cudaDeviceSynchronize", "sync", False),
    (45, "cudaMemcpyAsync", "copy", True),
)
API_SYMBOLS: dict[str, ApiSymbol] = {
    name + suffix: ApiSymbol(
        api_id + step, name.removesuffix("_v2"), api_class, "runtime" if name.startswith("cuda") else "driver"
    )
    for api_id, name, api_class, has_twin in _SYMBOLS
    for step, suffix in enumerate(("", "_ptsz") if has_twin else ("",))
}
"""Every symbol that can be probed."""

_LIBRARY_NAME = re.compile(r"libcuda(rt)?(?:-[0-9a-f]{6,})?\.so(?:\.(\d[\d.]*))?")  # with auditwheel's hash
_DELETED = " (deleted)"

_CODE_BYTES = 1024
_REMEDY = "run as root, or with CAP_SYS_PTRACE and CAP_CHECKPOINT_RESTORE"


class LibraryAccessError(MeasureError):
    """A file that a process has mapped can't be opened or its mappings can't be read."""

    def __init__(self, pid: int, path: str, reason: str, remedy: str) -> None:
        super().__init__(f"cannot open {path} of process {pid}: {reason}", remedy)
        self.pid = pid
        self.path = path
        self.reason = reason


class NoSymbolsError(MeasureError):
    """None of the wanted functions can be found in a library."""

    def __init__(self, path: str, reason: str, remedy: str) -> None:
        super().__init__(f"no CUDA functions found in {path}: {reason}", remedy)
        self.path = path
        self.reason = reason


@dataclass(frozen=True)
class MappedFile:
    """A file in the address space of a process, by one of its mappings."""

    device: int
    """As ``st_dev`` of the file system; btrfs and overlayfs show another one to ``stat``."""
    inode: int
    path: str
    start: int
    end: int
    executable: bool
    """Whether any of its mappings is."""
    deleted: bool


@dataclass(frozen=True)
class CudaLibrary:
    """A CUDA library in use. Two are equal if they are one file.

    Since kernel 6.8 a file of an image layer has another device in each container, although a uprobe through
    one fires in all: attach by process.
    """

    device: int
    inode: int
    kind: LibraryKind = field(compare=False)
    path: str = field(compare=False)
    """As the process sees it."""
    open_path: str = field(compare=False)
    """As this process and the kernel can open it, while process ``pid`` lives and keeps it mapped."""
    version: str = field(compare=False)
    """From the file's name, e.g. ``570.86.15``; empty if it has none."""
    primary: bool = field(compare=False)
    """Whether this is the layer to probe: the driver, or a runtime where no driver is mapped."""
    pid: int = field(compare=False)


@dataclass(frozen=True)
class ProbeSite:
    """Where to attach for one symbol."""

    symbol: str
    api_id: int
    file_offset: int
    """Where the uprobe goes, in bytes from the start of the file; ``point.delta`` is included."""
    point: ProbePoint


def mapped_files(pid: int) -> list[MappedFile]:
    """List the files that a process has mapped, each once, in the order of addresses.

    Returns an empty list for a process that is gone. Raises LibraryAccessError where it may not be inspected.
    """
    path = f"/proc/{pid}/maps"
    try:
        with open(path, "rb") as maps:
            lines = maps.read().split(b"\n")
    except (FileNotFoundError, ProcessLookupError):
        return []
    except PermissionError:
        raise LibraryAccessError(pid, path, "permission denied", _REMEDY) from None
    found: dict[tuple[bytes, bytes], tuple[bytes, bytes]] = {}
    executable = set()
    for line in lines:
        fields = line.split(None, 5)
        if len(fields) == 6 and fields[4] != b"0":
            key = (fields[3], fields[4])
            found.setdefault(key, (fields[0], fields[5]))
            if fields[1][2:3] == b"x":
                executable.add(key)
    files = []
    for key, (span, name) in found.items():
        major, minor = (int(number, 16) for number in key[0].split(b":"))
        start, end = (int(number, 16) for number in span.split(b"-"))
        seen = os.fsdecode(name).replace("\\012", "\n")
        files.append(
            MappedFile(
                device=os.makedev(major, minor),
                inode=int(key[1]),
                path=seen.removesuffix(_DELETED),
                start=start,
                end=end,
                executable=key in executable,
                deleted=seen.endswith(_DELETED),
            )
        )
    return files


def find_libraries(pid: int) -> list[CudaLibrary]:
    """Find the CUDA libraries of a process, drivers first.

    A statically linked runtime is looked for only where neither a driver nor a runtime library is mapped: it
    loads the driver at its first call, and then the driver is the place to probe.

    Returns an empty list for a process without CUDA or one that is gone. Raises LibraryAccessError where the
    process may not be inspected, or the very file that it has mapped can't be opened.
    """
    code = [file for file in mapped_files(pid) if file.executable]
    named = [
        (file, match) for file in code if (match := _LIBRARY_NAME.fullmatch(os.path.basename(file.path)))
    ]
    kinds: dict[MappedFile, tuple[LibraryKind, str]] = {
        file: ("runtime" if match[1] else "driver", match[2] or "") for file, match in named
    } or {file: ("static-runtime", "") for file in code}
    has_driver = any(kind == "driver" for kind, _ in kinds.values())

    libraries = []
    for file, (kind, version) in kinds.items():
        try:
            path = _open_path(pid, file)
        except LibraryAccessError:
            if kind == "static-runtime":
                continue  # any program: most have no CUDA in them
            raise
        if path is not None and (kind != "static-runtime" or _has_static_runtime(file, path)):
            primary = kind == "driver" or not has_driver
            libraries.append(
                CudaLibrary(file.device, file.inode, kind, file.path, path, version, primary, pid)
            )
    return sorted(libraries, key=lambda library: library.kind != "driver")


def _open_path(pid: int, file: MappedFile) -> str | None:
    """Find a path to the mapped file itself; None if the process or the mapping is gone."""
    exact = f"/proc/{pid}/map_files/{file.start:x}-{file.end:x}"
    refused = False
    try:
        os.stat(exact)
        return exact
    except PermissionError:
        refused = True
    except OSError:
        pass  # the process is gone, or the mapping has changed since
    # btrfs and overlayfs show stat a device that differs from the mapping's: within the root of the process
    # the inode has to do. In our own namespace, where anything may have this path, it does not.
    inside = f"/proc/{pid}/root{file.path}"
    for path, same_device in ((inside, False), (file.path, True)):
        try:
            status = os.stat(path)
        except PermissionError:
            refused = True
        except OSError:
            pass
        else:
            if status.st_ino == file.inode and (status.st_dev == file.device or not same_device):
                return path
    if refused and os.path.exists(f"/proc/{pid}"):
        state = "it was deleted, and map_files is refused" if file.deleted else "permission denied"
        raise LibraryAccessError(pid, file.path, state, _REMEDY)
    return None


_static_runtimes: dict[tuple[int, int, int, int], bool] = {}


def _has_static_runtime(file: MappedFile, path: str) -> bool:
    """Tell whether a program has the runtime linked into it. Answers are kept by file and time of change."""
    try:
        status = os.stat(path)
        key = (file.device, file.inode, status.st_mtime_ns, status.st_size)
        if key not in _static_runtimes:
            if len(_static_runtimes) >= 8192:
                _static_runtimes.clear()
            with BoundedFile(path) as opened:
                _static_runtimes[key] = bool(local_functions(opened.fileno(), ["cudaLaunchKernel"]))
        return _static_runtimes[key]
    except (OSError, OverflowError):  # unreadable, or an offset that no file can have
        return False


def probe_sites(
    library: CudaLibrary,
    classes: Collection[ApiClass] = API_CLASSES,
    *,
    kernel: KernelVersion | None = None,
    entry_only: bool = False,
) -> list[ProbeSite]:
    """Find where to put uprobes into a library, for the symbols of some classes, in the order of their ids.

    Symbols that share an address are one function and appear once. ``kernel`` and ``entry_only`` are those of
    :func:`~quietcore.probes.prologue.choose_probe_point`.

    Raises NoSymbolsError if none of the symbols is defined, LibraryAccessError if the file can't be
    read any more.
    """
    layer: Layer = "driver" if library.kind == "driver" else "runtime"
    names = [name for name, api in API_SYMBOLS.items() if api.layer == layer and api.api_class in classes]
    remedy = "is it a complete library for this machine?"
    try:
        with BoundedFile(library.open_path) as file:
            sites = list(_sites(file, names, library.kind == "static-runtime", kernel, entry_only))
    except OSError as error:
        reason = error.strerror or str(error)
        raise LibraryAccessError(
            library.pid, library.path, reason, "is the process still running?"
        ) from error
    except Exception as error:  # the parser's answer to a broken file may be any
        raise NoSymbolsError(library.path, f"unusable ELF file ({error})", remedy) from error
    if not sites:
        if layer == "runtime":
            remedy = "probe the driver, libcuda.so.1, which its programs load at their first CUDA call"
        raise NoSymbolsError(library.path, "its symbols are stripped or of another library", remedy)
    return sites


def _sites(
    file: BoundedFile, names: list[str], is_static: bool, kernel: KernelVersion | None, entry_only: bool
) -> Iterator[ProbeSite]:
    from elftools.elf.elffile import ELFFile

    elf: Any = ELFFile(file)
    architecture: Architecture = "aarch64" if platform.machine() == "aarch64" else "x86_64"
    machine = "EM_AARCH64" if architecture == "aarch64" else "EM_X86_64"
    if elf["e_machine"] != machine or elf.elfclass != 64 or not elf.little_endian:
        raise ValueError(f"it is for {elf['e_machine']}, this machine is {platform.machine()}")
    functions = local_functions(file.fileno(), names) if is_static else exported_functions(elf, names)
    segments = [segment.header for segment in elf.iter_segments("PT_LOAD") if segment["p_flags"] & 1]
    seen = set()
    for name in names:
        address, size = functions.get(name, (-1, 0))
        # Uprobes are placed by offset in the file, which only the loaded segments relate to addresses.
        segment = next((s for s in segments if 0 <= address - s["p_vaddr"] < s["p_filesz"]), None)
        if segment is None or address in seen:
            continue
        seen.add(address)
        within = address - segment["p_vaddr"]
        offset = segment["p_offset"] + within
        file.seek(offset)
        code = file.read(min(max(size, 64), _CODE_BYTES, segment["p_filesz"] - within))
        if code:
            point = choose_probe_point(
                code, architecture, address=address, kernel=kernel, entry_only=entry_only
            )
            yield ProbeSite(name, API_SYMBOLS[name].api_id, offset + point.delta, point)
