"""``quietcore doctor``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from quietcore import __version__
from quietcore.agent import targets
from quietcore.agent.cli.exit_codes import CANNOT_MEASURE, FOUND, HEALTHY
from quietcore.probes.host import Finding
from quietcore.probes.selftest import BackendCheck

SCHEMA = "quietcore.doctor/1"
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red", "unknown": "yellow", "idle": "yellow"}


@click.command()
@click.option(
    "--pid",
    type=click.IntRange(min=1),
    help="Check how the host treats this process, too (quota, NUMA, swap).",
)
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
@click.option("--verbose", is_flag=True, help="Show every program, and the kernel's log where one failed.")
def command(pid: int | None, as_json: bool, verbose: bool) -> None:
    """Load, attach and fire every BPF program, and check the host.

    Every backend is tried for real, in this order: libbpf (with each flavour of its hooks), bcc, procfs.

    Exit codes: 0 the default backend works and no check failed (warnings may stand), 1 a check
    failed, 2 wrong usage, 3 no BPF backend works: quietcore cannot measure as root would.
    """
    from quietcore.probes.host import check_host
    from quietcore.probes.selftest import check_backends

    if pid is not None:
        target = targets.by_pid(pid)  # says so if there is none
        pid = next(iter(target.processes))
        if target.note:
            click.echo(f"quietcore: {target.note}", err=True)
    backends = []
    for check in check_backends():
        backends.append(check)
        if not as_json:
            _show_backend(check, verbose)
    checks = check_host(pid)
    if as_json:
        click.echo(json.dumps(_document(backends, checks), indent=2))
    else:
        click.echo()
        for finding in checks:
            _show_finding(finding)
    sys.exit(exit_code(backends, checks))


def exit_code(backends: Sequence[BackendCheck], checks: Sequence[Finding]) -> int:
    """0, 1 or 3, see the command's help."""
    if not any(check.ok for check in backends if check.backend != "procfs"):
        return CANNOT_MEASURE
    # the libbpf backend falls back from one flavour to the next: one is enough
    works = {name: any(c.ok for c in backends if c.backend == name) for name in ("libbpf", "procfs")}
    return HEALTHY if all(works.values()) and all(f.status != "fail" for f in checks) else FOUND


def _document(backends: Sequence[BackendCheck], checks: Sequence[Finding]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "version": __version__,
        "backends": [asdict(check) for check in backends],
        "checks": [asdict(finding) for finding in checks],
    }


def _show_backend(check: BackendCheck, verbose: bool) -> None:
    name = f"{check.backend} {check.flavour}".strip()
    ran = sum(p.outcome == "ok" for p in check.programs)
    count = f"{ran} of {len(check.programs)} programs loaded, attached and fired" if check.programs else ""
    text = "; ".join(part for part in (count, check.detail) if part)
    if check.ok:
        click.echo(f"{_mark('ok')} {name}: {text} ({check.seconds:.1f} s)")
    else:
        remedy = f"\n       {check.remedy}" if check.remedy else ""
        click.echo(f"{_mark('fail')} {name}: {check.step}: {text}{remedy}")
    for program in check.programs:
        if verbose or program.outcome != "ok":
            detail = f": {program.detail}" if program.detail else ""
            click.echo(f"       {_mark(program.outcome)} {program.program}, {program.runs} runs{detail}")
    if verbose and check.log:
        click.echo(check.log)


def _show_finding(finding: Finding) -> None:
    click.echo(f"{_mark(finding.status)} {finding.check}: {finding.detail}")
    if finding.remedy and finding.status != "ok":
        click.echo(f"       {finding.remedy}")


def _mark(status: str) -> str:
    return click.style(f"{status:>7}", fg=_COLOURS[status])
