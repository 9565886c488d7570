"""Skips a marked test, with the reason, on a machine that lacks what the marker stands for."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}
BPF_MAP_CREATE = 0
BPF_MAP_TYPE_ARRAY = 2


def pytest_configure() -> None:
    """A shell starts what it runs in the background with Ctrl-C ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def can_create_bpf_map() -> bool:
    """Asks the kernel, since lockdown, seccomp and a missing capability all look alike from outside."""
    number = BPF_SYSCALL.get(platform.machine())
    if number is None:
        return False
    one_slot_array = (ctypes.c_uint32 * 18)(BPF_MAP_TYPE_ARRAY, 4, 4, 1)
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(number, BPF_MAP_CREATE, ctypes.byref(one_slot_array), ctypes.sizeof(one_slot_array))
    if fd < 0:
        return False
    os.close(fd)
    return True


@functools.cache
def missing_for_root() -> str:
    if os.geteuid() != 0:
        return "needs root"
    if not Path("/sys/kernel/btf/vmlinux").exists():
        return "needs a kernel with BTF (/sys/kernel/btf/vmlinux)"
    if not Path("/sys/kernel/tracing/events").exists():
        return "needs tracefs at /sys/kernel/tracing"
    if not can_create_bpf_map():
        return "needs the bpf system call, which this kernel or container refuses"
    return ""


@functools.cache
def find_kernel_headers() -> tuple[Path, Path] | None:
    """The (build, source) trees that bcc can use: those of the running kernel, else the newest installed."""
    own = Path("/lib/modules", platform.release())
    if (own / "build").exists():
        return own / "build", own / "source" if (own / "source").exists() else own / "build"
    for build in sorted(Path("/usr/src").glob("linux-headers-*"), reverse=True):
        if (build / "include/generated/autoconf.h").exists():
            common = build.with_name(f"{build.name.rpartition('-')[0]}-common")
            return build, common if common.exists() else build
    return None


@functools.cache
def missing_for_bcc() -> str:
    if reason := missing_for_root():
        return reason
    if importlib.util.find_spec("bcc") is None:
        return "needs bcc (apt-get install python3-bpfcc)"
    if find_kernel_headers() is None:
        return "needs kernel headers (apt-get install linux-headers-amd64)"
    return ""


@functools.cache
def missing_for_vllm() -> str:
    environment = os.environ.get("QUIETCORE_VLLM_VENV", "")
    if not environment:
        return "needs QUIETCORE_VLLM_VENV (tests/vllm_server/install.sh makes that environment)"
    if not Path(environment, "bin", "python").exists():
        return f"QUIETCORE_VLLM_VENV={environment} holds no environment"
    return ""


@functools.cache
def missing_for_nobody() -> str:
    """A checkout below a folder of root's alone, as ``mktemp -d`` makes them, is out of others' reach."""
    if os.geteuid() != 0:
        return "needs root, to run something as another user"
    program = [sys.executable, "-c", "import quietcore.probes"]
    try:
        done = subprocess.run(program, user=65534, cwd="/", capture_output=True, check=False)
        if done.returncode == 0:
            return ""
    except PermissionError:
        pass
    return f"needs a checkout that other users can read, unlike {ROOT}"


MISSING_FOR: dict[str, Callable[[], str]] = {
    "root": missing_for_root,
    "nobody": missing_for_nobody,
    "bcc": missing_for_bcc,
    "vllm": missing_for_vllm,
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, missing in MISSING_FOR.items():
        if item.get_closest_marker(marker) and (reason := missing()):
            pytest.skip(reason)
