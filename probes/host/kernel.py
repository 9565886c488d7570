"""Checks of what BPF programs need, made without loading one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from quietcore.probes.host.finding import Finding, Roots, check, read_text, status_fields, try_read

_FIRST_KERNEL = (5, 8)
_INIT_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO in linux/proc_ns.h
_CAPABILITIES = {"CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
_AS_ROOT = "run as root, or with CAP_BPF and CAP_PERFMON"


@check("kernel")
def kernel_version(roots: Roots) -> Iterator[Finding]:
    """Whether the kernel has what the libbpf backend uses."""
    release = read_text(roots.proc / "sys/kernel/osrelease")
    match = re.match(r"(\d+)\.(\d+)", release)
    if match is None:
        raise ValueError(release)
    if (int(match[1]), int(match[2])) >= _FIRST_KERNEL:
        yield Finding("kernel", "ok", release)
    else:
        yield Finding("kernel", "warn", f"{release} is older than 5.8", "use --backend bcc or procfs")


@check("btf")
def btf(roots: Roots) -> Iterator[Finding]:
    """Whether the kernel describes its types."""
    path = roots.sys / "kernel/btf/vmlinux"
    if path.exists():
        yield Finding("btf", "ok", f"{path}, {path.stat().st_size:,} bytes")
    else:
        remedy = "use a kernel with CONFIG_DEBUG_INFO_BTF=y, or --backend bcc"
        yield Finding("btf", "fail", f"{path} does not exist", remedy)


@check("lockdown")
def lockdown(roots: Roots) -> Iterator[Finding]:
    """Whether the kernel forbids BPF programs to read its memory."""
    security = roots.sys / "kernel/security"
    if not (security / "lockdown").exists():
        if security.exists() and any(security.iterdir()):
            yield Finding("lockdown", "ok", "not in this kernel")
        else:
            yield Finding("lockdown", "unknown", f"securityfs is not mounted at {security}")
        return
    match = re.search(r"\[(\w+)\]", read_text(security / "lockdown"))
    if match is None:
        raise ValueError(str(security / "lockdown"))
    if match[1] == "confidentiality":
        remedy = "boot with lockdown=integrity or without lockdown, or use --backend procfs"
        yield Finding("lockdown", "fail", "confidentiality: BPF programs may not read the kernel", remedy)
    else:
        yield Finding("lockdown", "ok", match[1])


@check("capabilities")
def capabilities(roots: Roots) -> Iterator[Finding]:
    """Whether this process may load BPF programs and attach uprobes."""
    effective = int(status_fields(roots.proc, "self")["CapEff"], 16)
    held = {name for name, bit in _CAPABILITIES.items() if effective >> bit & 1}
    listed = ", ".join(sorted(held)) or "none of " + ", ".join(_CAPABILITIES)
    mapping = try_read(roots.proc / "self/uid_map").split()
    if held and mapping and mapping != ["0", "0", "4294967295"]:
        detail = f"{listed}, but within a user namespace only"
        yield Finding(
            "capabilities", "fail", detail, "run on the host, or in a container without user namespace"
        )
    elif "CAP_SYS_ADMIN" in held or held >= {"CAP_BPF", "CAP_PERFMON"}:
        yield Finding("capabilities", "ok", listed)
    else:
        yield Finding("capabilities", "fail", listed, f"{_AS_ROOT}; without, --backend procfs shows less")


@check("tracefs")
def tracefs(roots: Roots) -> Iterator[Finding]:
    """Whether tracefs is mounted, where tracepoints are looked up."""
    for line in read_text(roots.proc / "self/mounts").splitlines():
        _, point, kind, *_ = line.split(" ")
        if kind == "tracefs":
            yield Finding("tracefs", "ok", f"mounted at {point}")
            return
    remedy = "mount -t tracefs tracefs /sys/kernel/tracing"
    yield Finding("tracefs", "warn", "not mounted: the bcc backend cannot attach", remedy)


def sees_all_processes(roots: Roots) -> bool:
    """Whether /proc shows the host's processes rather than those of a container."""
    try:
        return _namespace(roots, "self") == _INIT_PID_NAMESPACE
    except (OSError, ValueError):
        return False


def _namespace(roots: Roots, pid: str) -> int:
    text = os.readlink(roots.proc / pid / "ns/pid")
    match = re.fullmatch(r"pid:\[(\d+)\]", text)
    if match is None:
        raise ValueError(text)
    return int(match[1])


@check("pid-namespace")
def pid_namespace(roots: Roots) -> Iterator[Finding]:
    """Whether this process is in the host's pid namespace, and /proc shows the same."""
    ours = _namespace(roots, "self")
    try:
        shown = _namespace(roots, "1")
    except (OSError, ValueError):  # needs the right to trace process 1
        shown = ours
    if ours != _INIT_PID_NAMESPACE:
        yield Finding(
            "pid-namespace",
            "warn",
            "this agent runs in a container's pid namespace; host processes are invisible",
            "start the container with --pid=host (hostPID: true in Kubernetes)",
        )
    elif shown != ours:
        detail = f"{roots.proc} shows the processes of another pid namespace"
        yield Finding("pid-namespace", "warn", detail, "mount a /proc of this namespace")
    else:
        yield Finding("pid-namespace", "ok", "the host's")
