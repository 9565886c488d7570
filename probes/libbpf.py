"""libbpf through ctypes: finding it, its functions, and what it prints.

The system's library is used when it is 1.0 or newer (older ones cannot read the BTF of
kernels from 6.0), else the copy that the wheel carries.
"""

from __future__ import annotations

import contextlib
import ctypes as ct
import os
import platform
from pathlib import Path

from quietcore.probes.errors import BackendUnavailableError

_BUNDLED = Path(__file__).parent / "_built" / "lib"
_PrintFn = ct.CFUNCTYPE(ct.c_int, ct.c_int, ct.c_char_p, ct.c_void_p)
SampleFn = ct.CFUNCTYPE(ct.c_int, ct.c_void_p, ct.c_void_p, ct.c_size_t)

_SYS_BPF = {"x86_64": 321, "aarch64": 280}.get(platform.machine(), 321)


class UprobeOptions(ct.Structure):
    """``struct bpf_uprobe_opts`` up to libbpf 1.0's fields."""

    _fields_ = (
        ("sz", ct.c_size_t),
        ("ref_ctr_offset", ct.c_size_t),
        ("bpf_cookie", ct.c_uint64),
        ("retprobe", ct.c_bool),
        ("func_name", ct.c_char_p),
    )


def _declare(lib: ct.CDLL) -> None:
    pointer, text, integer, size = ct.c_void_p, ct.c_char_p, ct.c_int, ct.c_size_t
    signatures: dict[str, tuple[object, list[object]]] = {
        "bpf_object__open_file": (pointer, [text, pointer]),
        "bpf_object__load": (integer, [pointer]),
        "bpf_object__close": (None, [pointer]),
        "bpf_object__next_program": (pointer, [pointer, pointer]),
        "bpf_object__next_map": (pointer, [pointer, pointer]),
        "bpf_program__name": (text, [pointer]),
        "bpf_program__fd": (integer, [pointer]),
        "bpf_program__set_autoload": (integer, [pointer, ct.c_bool]),
        "bpf_program__autoload": (ct.c_bool, [pointer]),
        "bpf_program__set_expected_attach_type": (integer, [pointer, integer]),
        "bpf_program__attach": (pointer, [pointer]),
        "bpf_program__attach_uprobe_opts": (
            pointer,
            [pointer, integer, text, size, ct.POINTER(UprobeOptions)],
        ),
        "bpf_link__destroy": (integer, [pointer]),
        "bpf_map__name": (text, [pointer]),
        "bpf_map__fd": (integer, [pointer]),
        "bpf_map__reuse_fd": (integer, [pointer, integer]),
        "bpf_map__set_max_entries": (integer, [pointer, ct.c_uint32]),
        "bpf_map_lookup_elem": (integer, [integer, pointer, pointer]),
        "bpf_map_update_elem": (integer, [integer, pointer, pointer, ct.c_uint64]),
        "bpf_map_delete_elem": (integer, [integer, pointer]),
        "bpf_map_get_next_key": (integer, [integer, pointer, pointer]),
        "bpf_map_lookup_batch": (
            integer,
            [integer, pointer, pointer, pointer, pointer, ct.POINTER(ct.c_uint32), pointer],
        ),
        "libbpf_num_possible_cpus": (integer, []),
        "libbpf_major_version": (ct.c_uint32, []),
        "libbpf_version_string": (text, []),
        "libbpf_set_print": (pointer, [_PrintFn]),
        "ring_buffer__new": (pointer, [integer, SampleFn, pointer, pointer]),
        "ring_buffer__consume": (integer, [pointer]),
        "ring_buffer__epoll_fd": (integer, [pointer]),
        "ring_buffer__free": (None, [pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments


class Libbpf:
    """The loaded library. Keeps what it prints: that is where the verifier's log is."""

    def __init__(self) -> None:
        self.lib, self.origin = _load_library()
        _declare(self.lib)
        self.messages: list[str] = []
        self._libc = ct.CDLL(None, use_errno=True)
        self._print = _PrintFn(self._keep_message)
        self.lib.libbpf_set_print(self._print)
        self.cpus: int = self.lib.libbpf_num_possible_cpus()

    @property
    def version(self) -> str:
        """Version and where it came from: ``v1.1 (system)``."""
        return f"{self.lib.libbpf_version_string().decode()} ({self.origin})"

    def _keep_message(self, level: int, text: bytes, arguments: int) -> int:
        if level <= 1:  # 0 warning, 1 information
            buffer = ct.create_string_buffer(16384)
            self._libc.vsnprintf(buffer, ct.c_size_t(len(buffer)), text, ct.c_void_p(arguments))
            self.messages.append(buffer.value.decode(errors="replace").rstrip())
            del self.messages[:-200]
        return 0

    def take_messages(self) -> str:
        """What was printed since the last call."""
        text, self.messages = "\n".join(self.messages), []
        return text

    def bpf(self, command: int, attr: ct.Structure) -> int:
        """The raw system call, for what this libbpf has no function for. Raises OSError."""
        fd: int = self._libc.syscall(_SYS_BPF, command, ct.byref(attr), ct.c_uint32(ct.sizeof(attr)))
        if fd < 0:
            code = ct.get_errno()
            raise OSError(code, os.strerror(code))
        return fd


def _load_library() -> tuple[ct.CDLL, str]:
    bundled = _BUNDLED / "libbpf.so.1"
    wanted = os.environ.get("QUIETCORE_LIBBPF", "auto")
    reasons = []
    if wanted in ("auto", "system"):
        try:
            lib = ct.CDLL("libbpf.so.1", use_errno=True)
            lib.libbpf_major_version.restype = ct.c_uint32
            if lib.libbpf_major_version() >= 1:
                return lib, "system"
            reasons.append("the system's libbpf is older than 1.0")
        except (OSError, AttributeError) as e:
            reasons.append(str(e))
    if wanted in ("auto", "bundled"):
        try:
            for dependency in ("libz.so.1", "libelf.so.1"):
                with contextlib.suppress(OSError):
                    ct.CDLL(str(_BUNDLED / dependency), mode=ct.RTLD_GLOBAL)
            return ct.CDLL(str(bundled), use_errno=True), "bundled"
        except OSError as e:
            reasons.append(str(e))
    raise BackendUnavailableError(
        "libbpf",
        "library",
        "; ".join(reasons) or f"QUIETCORE_LIBBPF={wanted} is not auto, system or bundled",
        "install libbpf1, or a wheel of quietcore built for this machine",
    )
