"""Candidate plans against a disturbance, the gentlest first. Pure: a situation in, plans out.

Each plan stands for itself, applied to a host as it was found: what is tried never builds on what was tried
before. Which one helps is for a measurement to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from quietcore.agent.pin.levers import cpu_text
from quietcore.agent.pin.owners import Owner
from quietcore.agent.pin.situation import Situation, ThreadFacts
from quietcore.agent.pin.things import IrqLine, Thing, Thread, Value
from quietcore.probes.host.finding import format_list
from quietcore.probes.topology import Irq

QUIET = 0.3
"""A CPU is quiet while others keep it busy for less than this part of the time."""
MIN_IRQ_RATE = 100.0
"""Interrupts a second from which moving one is worth the while."""
NICE = -10
"""What the published recipe (taskset and nice) gives the launching thread."""
LONG_SLICE_NS, SHORT_SLICE_NS = 20_000_000, 300_000
"""For threads that are pushed aside while they run, and for those that wait to run after a sleep."""
MAX_THREADS = 512
"""Threads of one offender that are moved; one with more is left to its owner."""


class Setting(NamedTuple):
    """One lever on one thing."""

    lever: str
    thing: Thing
    value: Value


@dataclass(frozen=True, slots=True)
class Plan:
    """Settings that belong together.

    Attributes:
        cpus: chosen for the critical threads, empty where their CPUs stay as they are.
        nice, slice_ns: given to them, ``None`` where these stay.
    """

    name: str
    why: str
    settings: tuple[Setting, ...]
    cpus: frozenset[int] = frozenset()
    nice: int | None = None
    slice_ns: int | None = None

    @property
    def thread_levers(self) -> tuple[str, ...]:
        """The levers by which it acts on critical threads."""
        chosen = {
            "affinity": bool(self.cpus),
            "nice": self.nice is not None,
            "slice": self.slice_ns is not None,
        }
        return tuple(name for name, used in chosen.items() if used)

    @property
    def levers(self) -> frozenset[str]:
        return frozenset(setting.lever for setting in self.settings)

    def settings_for(self, thread: Thread) -> list[Setting]:
        """For a critical thread that came later."""
        values = {"affinity": cpu_text(self.cpus), "nice": self.nice, "slice": self.slice_ns}
        return [
            Setting(name, thread, value) for name in self.thread_levers if (value := values[name]) is not None
        ]


class Proposal(NamedTuple):
    """The plans that may be tried, those that owners stand in the way of, and the owners that matter."""

    plans: tuple[Plan, ...]
    blocked: tuple[Plan, ...]
    owners: tuple[Owner, ...]


def propose(situation: Situation) -> Proposal:
    """What to try, in this order."""
    owned = frozenset(lever for owner in situation.owners for lever in owner.levers)
    made = list(candidates(situation))
    return Proposal(
        tuple(plan for plan in made if not plan.levers & owned),
        tuple(plan for plan in made if plan.levers & owned),
        tuple(owner for owner in situation.owners if owner.levers),
    )


def candidates(s: Situation) -> Iterator[Plan]:
    """All plans that would change anything, whoever owns what."""
    if not s.threads:
        return
    pinned = _pin(place(s), "quiet")
    if pinned:
        yield pinned
    present = frozenset(cpu for facts in s.threads for cpu in facts.allowed & s.topology.online)
    # threads that roam over all CPUs have no place to keep interrupts from
    away = _move_irqs(s, present) if present < s.topology.online else None
    if away:
        yield away
    base = pinned or _pin(_least_busy(s), "the least busy")
    if base:
        away = _move_irqs(s, base.cpus)
        base = _together("affinity+irq", base, away) if away else base
        if pinned and away:
            yield base
    yield from _weigh(s, base or away)
    if narrowed := _narrow(s):
        yield narrowed
    home = base.cpus if base else frozenset(facts.cpu for facts in s.threads)
    if others := _move_offenders(s, home):
        yield _together("affinity+offenders", pinned, others) if pinned else others


def place(s: Situation) -> dict[ThreadFacts, frozenset[int]] | None:
    """Quiet CPUs for the critical threads: one each if there are enough, else all of them for all.

    ``None`` where a thread may use no quiet CPU, or nothing would change.
    """
    quiet = {
        facts: {cpu for cpu in _usable(s, facts) - s.culprit_cpus if s.others.get(cpu, 0.0) < QUIET}
        for facts in s.threads
    }
    if not all(quiet.values()):
        return None
    spread: dict[ThreadFacts, frozenset[int]] = {}
    taken: set[int] = set()
    for facts, cpus in sorted(quiet.items(), key=lambda item: len(item[1])):
        free = cpus - taken
        if not free:
            spread = {facts: frozenset(cpus) for facts, cpus in quiet.items()}
            break
        best = min(free, key=partial(_rank, s, facts, taken))
        spread[facts] = frozenset({best})
        taken.add(best)
    if all(cpus == facts.allowed for facts, cpus in spread.items()):
        return None
    return spread


def _usable(s: Situation, facts: ThreadFacts) -> frozenset[int]:
    allowed = facts.allowed & s.topology.online
    # isolated CPUs get no balancing: only for who was put there
    return (allowed - s.topology.isolated or allowed) - s.avoid


def _rank(s: Situation, facts: ThreadFacts, taken: set[int], cpu: int) -> tuple[float, ...]:
    """The smaller, the better a place."""
    here, home = s.topology.cpus[cpu], s.topology.cpus.get(facts.cpu)
    crowded = any(s.others.get(other, 0.0) >= QUIET or other in taken for other in here.siblings - {cpu})
    return (
        crowded,
        here.small,
        cpu not in s.topology.near_gpus,
        home is not None and here.node != home.node,
        home is not None and cpu not in home.cache,
        _irqs_on(s, cpu) >= MIN_IRQ_RATE,
        round(s.others.get(cpu, 0.0), 1),
        cpu != facts.cpu,
        cpu,
    )


def _rank_by_load(s: Situation, facts: ThreadFacts, taken: set[int], cpu: int) -> tuple[float, ...]:
    return (round(s.others.get(cpu, 0.0), 1), *_rank(s, facts, taken, cpu))


def _irqs_on(s: Situation, cpu: int) -> float:
    return sum(s.irq_rates.get(n, 0.0) for n, irq in s.irqs.items() if irq.effective == {cpu})


def _least_busy(s: Situation) -> dict[ThreadFacts, frozenset[int]] | None:
    """Where every CPU is busy: one each all the same, so that weight decides on one CPU."""
    spread: dict[ThreadFacts, frozenset[int]] = {}
    taken: set[int] = set()
    for facts in s.threads:
        free = _usable(s, facts) - taken
        if not free:
            return None
        best = min(free, key=partial(_rank_by_load, s, facts, taken))
        spread[facts] = frozenset({best})
        taken.add(best)
    if all(cpus == facts.allowed for facts, cpus in spread.items()):
        return None
    return spread


def _pin(spread: Mapping[ThreadFacts, frozenset[int]] | None, kind: str) -> Plan | None:
    if spread is None:
        return None
    settings = tuple(
        Setting("affinity", facts.thread, cpu_text(cpus))
        for facts, cpus in spread.items()
        if cpus != facts.allowed
    )
    cpus = frozenset(cpu for chosen in spread.values() for cpu in chosen)
    why = f"{len(spread)} critical threads on {kind} CPUs {format_list(cpus)}"
    return Plan("affinity", why, settings, cpus)


def _move_irqs(s: Situation, home: frozenset[int]) -> Plan | None:
    settings, managed = [], []
    for number, irq in sorted(s.irqs.items()):
        if s.irq_rates.get(number, 0.0) < MIN_IRQ_RATE or not irq.effective & home or not irq.name:
            continue
        if irq.managed:
            managed.append(f"{number} ({irq.name})")
        elif elsewhere := (irq.affinity & s.topology.online) - home or _other_cpu(s, irq, home):
            settings.append(Setting("irq", IrqLine(number, irq.name), cpu_text(elsewhere)))
    if not settings:
        return None
    numbers = [setting.thing.number for setting in settings if isinstance(setting.thing, IrqLine)]
    why = f"interrupts {', '.join(map(str, numbers))} away from CPUs {format_list(home)}"
    if managed:
        why += f"; managed, cannot be moved: {', '.join(managed)}"
    if s.balancer:
        banned = {*numbers, *map(int, s.banned.split())}
        ban = " ".join(map(str, sorted(banned)))
        settings.insert(0, Setting("irqbalance", s.balancer, ban))
    return Plan("irq", why, tuple(settings))


def _other_cpu(s: Situation, irq: Irq, home: frozenset[int]) -> frozenset[int]:
    """For an interrupt that goes nowhere else: one CPU nearby that is least busy."""
    free = s.topology.online - home - s.topology.isolated - s.topology.nohz_full - s.avoid
    nodes = {s.topology.cpus[cpu].node for cpu in irq.effective & s.topology.online}

    def rank(cpu: int) -> tuple[float, ...]:
        here = s.topology.cpus[cpu]
        return here.node not in nodes, bool(here.siblings & home), round(s.others.get(cpu, 0.0), 1), cpu

    return frozenset(sorted(free, key=rank)[:1])


def _weigh(s: Situation, base: Plan | None) -> Iterator[Plan]:
    """Nice and slice, alone and together with a place."""
    threads = [facts for facts in s.threads if facts.fair]
    heavy: Plan | None = None
    if threads and (s.nice_counts or s.session) and any(facts.nice > NICE for facts in threads):
        settings = [Setting("nice", facts.thread, NICE) for facts in threads if facts.nice > NICE]
        why = f"nice {NICE} for {len(settings)} critical threads"
        if s.session:
            settings.append(Setting("session-nice", s.session, NICE))
            why += ", and for their session, which is weighed as one"
        heavy = Plan("nice", why, tuple(settings), nice=NICE)
        yield heavy
        if base:
            yield _together(f"{base.name}+nice", base, heavy)
    if threads and s.slices:
        length = LONG_SLICE_NS if any(facts.pushed for facts in threads) else SHORT_SLICE_NS
        sliced = Plan(
            "slice",
            f"slices of {length / 1e6:g} ms for {len(threads)} critical threads",
            tuple(Setting("slice", facts.thread, length) for facts in threads),
            slice_ns=length,
        )
        parts = [plan for plan in (base, heavy, sliced) if plan]
        yield sliced if len(parts) == 1 else _together("+".join(plan.name for plan in parts), *parts)


def _narrow(s: Situation) -> Plan | None:
    """The target's cgroup without the CPUs on which it is disturbed."""
    if s.cpuset is None:
        return None
    loud = {cpu for cpu, share in s.others.items() if share >= QUIET} | s.culprit_cpus | s.avoid
    cpus = (s.cpuset.cpus & s.topology.online) - loud
    if len(cpus) < len(s.threads) or cpus == s.cpuset.cpus:
        return None
    why = f"all of the target's cgroup on CPUs {format_list(cpus)}"
    return Plan("cpuset", why, (Setting("cpuset", s.cpuset.thing, cpu_text(cpus)),))


def _move_offenders(s: Situation, home: frozenset[int]) -> Plan | None:
    settings: list[Setting] = []
    names = []
    for offender in s.offenders:
        before = len(settings)
        if offender.cpuset is not None:
            if cpus := offender.cpuset.cpus - home:
                settings.append(Setting("cpuset", offender.cpuset.thing, cpu_text(cpus)))
        elif len(offender.threads) <= MAX_THREADS:
            settings += [
                Setting("affinity", facts.thread, cpu_text(facts.allowed - home))
                for facts in offender.threads
                if facts.allowed & home and facts.allowed - home
            ]
        if len(settings) > before:
            names.append(offender.name)
    if not settings:
        return None
    why = f"{', '.join(names)} away from CPUs {format_list(home)}"
    return Plan("offenders", why, tuple(settings))


def _together(name: str, first: Plan, *others: Plan) -> Plan:
    plan: Plan = replace(first, name=name)
    for other in others:
        plan = replace(
            plan,
            why=f"{plan.why}; {other.why}",
            settings=(*plan.settings, *other.settings),
            cpus=plan.cpus | other.cpus,
            nice=other.nice if plan.nice is None else plan.nice,
            slice_ns=other.slice_ns if plan.slice_ns is None else plan.slice_ns,
        )
    return plan


def summary(plans: Sequence[Plan]) -> list[dict[str, object]]:
    """For JSON."""
    return [
        {
            "name": plan.name,
            "why": plan.why,
            "settings": [
                {"lever": lever, "thing": str(thing), "value": value} for lever, thing, value in plan.settings
            ],
        }
        for plan in plans
    ]
