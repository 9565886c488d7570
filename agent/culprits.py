"""Culprits in a reader's order: many small processes stand together, as what started them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from quietcore.agent.attribution import Account, Culprit
from quietcore.probes import cgroups

MAJOR = 0.1
"""A process stands for itself from this part of the interference."""
NAMED = 3
"""Culprits named in a verdict: the major ones, this many at most."""


def ranked(whole: Account) -> list[Culprit]:
    """All culprits, largest first; processes that are not major by cgroup, else by comm."""
    large, small = [], dict[tuple[str, str], list[Culprit]]()
    for culprit in whole.culprits:
        if culprit.pid and culprit.ns < _major_ns(whole):
            small.setdefault(_group(culprit, whole.own_cgroups), []).append(culprit)
        else:
            large.append(culprit)
    groups = [_together(kind, name, members) for (kind, name), members in small.items()]
    return sorted([*large, *groups], key=lambda c: -c.ns)


def named(whole: Account) -> tuple[Culprit, ...]:
    """Those for a verdict. Where none is major the largest, rather than nobody."""
    all_of_them = ranked(whole)
    return tuple([c for c in all_of_them if c.ns >= _major_ns(whole)][:NAMED] or all_of_them[:NAMED])


def _major_ns(whole: Account) -> float:
    return MAJOR * max(whole.interference, 1)


def _group(culprit: Culprit, own: frozenset[int]) -> tuple[str, str]:
    """Kind and name of what a process belongs to."""
    if culprit.kind == "kernel thread":
        return "kernel threads", culprit.name.partition("/")[0]  # kworker/1:2-events
    if culprit.cgroup and culprit.cgroup not in own:
        path = cgroups.path_of(culprit.cgroup)
        # in the root is what nobody has put anywhere
        if path and path != "/":
            return "cgroup", cgroups.short_name(path)
    return "processes", culprit.name


def _together(kind: str, name: str, members: Sequence[Culprit]) -> Culprit:
    if len(members) == 1:
        return members[0]
    comms = {member.name for member in members}
    if kind == "cgroup" and len(comms) == 1:
        kind, name = "processes", comms.pop()
    elif name == "?":
        name = "ended process"
    threads = {thread: ns for member in members for thread, ns in member.threads.items()}
    where = {member.cgroup for member in members}
    return replace(
        members[0],
        kind=kind,
        name=name,
        ns=sum(member.ns for member in members),
        pid=0,
        cgroup=where.pop() if len(where) == 1 else 0,
        threads=threads,
        count=len(members),
    )
