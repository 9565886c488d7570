"""What about this host, its kernel and a process's place on it may cost launches time: read, never changed.

Nothing here raises: a check that cannot read its source says so by the status ``unknown``.
"""

from __future__ import annotations

from collections.abc import Callable

from quietcore.probes.host import kernel, machine, process
from quietcore.probes.host.finding import Finding, Roots, Status

__all__ = ["Finding", "Roots", "Status", "check_host", "check_kernel", "check_machine", "check_process"]

_MACHINE: tuple[Callable[[Roots], list[Finding]], ...] = (
    machine.frequency_governor,
    machine.idle_states,
    machine.isolated_cpus,
    machine.irqbalance,
    machine.sched_ext,
    machine.virtualisation,
    machine.steal,
    machine.cpu_pressure,
)
_KERNEL: tuple[Callable[[Roots], list[Finding]], ...] = (
    kernel.kernel_version,
    kernel.btf,
    kernel.lockdown,
    kernel.capabilities,
    kernel.tracefs,
    kernel.pid_namespace,
)
_PROCESS: tuple[Callable[[Roots, int], list[Finding]], ...] = (
    process.cpu_affinity,
    process.numa_placement,
    process.cpu_quota,
    process.swap,
)


def check_machine(roots: Roots | None = None) -> list[Finding]:
    """CPUs, interrupts, scheduler and hypervisor."""
    return [finding for check in _MACHINE for finding in check(roots or Roots())]


def check_kernel(roots: Roots | None = None) -> list[Finding]:
    """What BPF programs need, as far as it shows without loading one."""
    return [finding for check in _KERNEL for finding in check(roots or Roots())]


def check_process(pid: int, roots: Roots | None = None) -> list[Finding]:
    """A process's CPUs, memory and quota."""
    roots = roots or Roots()
    if not (roots.proc / str(pid)).exists():
        remedy = "look it up again with ps; hidepid or a pid namespace may hide it"
        return [Finding("process", "unknown", f"process {pid} does not exist, or is hidden", remedy)]
    return [finding for check in _PROCESS for finding in check(roots, pid)]


def check_host(pid: int | None = None, roots: Roots | None = None) -> list[Finding]:
    """All checks; those of a process only if ``pid`` is given."""
    of_process = [] if pid is None else check_process(pid, roots)
    return [*check_kernel(roots), *check_machine(roots), *of_process]
