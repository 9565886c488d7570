"""Makes the changes of a plan and takes them back, by way of the journal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from quietcore.agent.pin.journal import Change, Entry, Journal, Key, pids_in
from quietcore.agent.pin.levers import GoneError, Outcome, RefusedError, cpu_text, put, restore
from quietcore.agent.pin.plan import Plan, Setting
from quietcore.agent.pin.registry import LEVERS
from quietcore.agent.pin.things import Thing, Thread, Value, find_thread, threads_of
from quietcore.agent.pin.thread_levers import UNBOUND
from quietcore.probes import proc
from quietcore.probes.errors import TargetGoneError
from quietcore.probes.host.finding import parse_list

_PASSES = range(2, 6)
"""Looks at the threads of a process: two at least, each for those that were born during the one before."""


@dataclass(frozen=True, slots=True)
class Step:
    """What came of one thing; ``why`` where it went otherwise than wanted."""

    lever: str
    thing: Thing
    outcome: Outcome
    old: Value | None = None
    new: Value | None = None
    why: str = ""

    def __str__(self) -> str:
        lever = LEVERS[self.lever]
        change = f" {self.old} -> {self.new}" if self.new is not None else ""
        why = f" ({self.why})" if self.why else ""
        return f"{self.thing}: {lever.word}{change}: {self.outcome.value}{why}"


@dataclass(frozen=True, slots=True)
class Report:
    """What came of applying, sweeping or undoing."""

    steps: tuple[Step, ...] = ()

    def of(self, *outcomes: Outcome) -> list[Step]:
        return [step for step in self.steps if step.outcome in outcomes]

    @property
    def changed(self) -> bool:
        return bool(self.of(Outcome.SET, Outcome.RESTORED))

    @property
    def conflicts(self) -> list[Step]:
        return self.of(Outcome.CONFLICT)


def apply(journal: Journal, settings: Sequence[Setting], target: str) -> Report:
    """Set everything that can be set, the old values on disk before. Raises MeasureError of the journal."""
    steps: list[Step] = []
    changes: list[Change] = []
    for setting in settings:
        step = _prepare(journal, setting, target)
        if step.old is not None and step.new is not None and step.outcome is Outcome.SET:
            changes.append(Change(setting.lever, setting.thing, step.old, step.new))
        else:
            steps.append(step)
    if changes:
        journal.record(changes, target)
    failed: list[Key] = []
    for change in changes:
        outcome, why = Outcome.SET, ""
        try:
            put(LEVERS[change.lever], change.thing, change.new)
        except GoneError:
            outcome = Outcome.GONE
        except RefusedError as e:
            outcome, why = Outcome.REFUSED, str(e)
        if outcome is not Outcome.SET and len(journal.entries[change.lever, change.thing].ours) == 1:
            failed.append((change.lever, change.thing))
        steps.append(Step(change.lever, change.thing, outcome, change.old, change.new, why))
    if failed:
        journal.done(failed)
    return Report(tuple(steps))


def _prepare(journal: Journal, setting: Setting, target: str) -> Step:
    """What is there before: outcome SET where it is to be changed."""
    lever = LEVERS[setting.lever]
    entry = journal.entries.get((setting.lever, setting.thing))
    if entry is not None and entry.target != target:
        return Step(lever.name, setting.thing, Outcome.HELD, why=entry.target)
    if (setting.lever, setting.thing) in journal.conceded:
        return Step(lever.name, setting.thing, Outcome.CONFLICT, why="others set it: left to them")
    try:
        now = lever.read(setting.thing)
    except GoneError:
        return Step(lever.name, setting.thing, Outcome.GONE)
    except RefusedError as e:
        return Step(lever.name, setting.thing, Outcome.REFUSED, why=str(e))
    original = entry.old if entry else _original(journal, setting.lever, setting.thing, now)
    value = setting.value
    if lever.name == "affinity":
        allowed = parse_list(str(original).removesuffix(UNBOUND))
        value = cpu_text(parse_list(str(value)) & allowed)
        if not value:
            why = f"it may not use CPUs {setting.value}, only {original}"
            return Step(lever.name, setting.thing, Outcome.REFUSED, why=why)
    if lever.same(now, value) and (entry is not None or lever.same(now, original)):
        return Step(lever.name, setting.thing, Outcome.ALREADY, now, value)
    return Step(lever.name, setting.thing, Outcome.SET, original, value)


def _original(journal: Journal, name: str, thing: Thing, now: Value) -> Value:
    """The value that a thread would have without us: one that was born since may have inherited ours."""
    if not LEVERS[name].inherited or not isinstance(thing, Thread):
        return now
    of_process = [
        e for e in journal.entries.values() if isinstance(e.thing, Thread) and e.thing.pid == thing.pid
    ]
    inherited = _would_have(of_process, name, thing, now)
    return now if inherited is None else inherited


def _would_have(entries: Iterable[Entry], name: str, thread: Thread, now: Value) -> Value | None:
    """What a thread without an entry would have without us; ``None`` if it has nothing of ours.

    The kernel does not tell which thread made it. Where those that may have had different values at first,
    the most common one counts.
    """
    lever = LEVERS[name]
    makers = [
        entry
        for entry in entries
        if entry.lever == name
        and thread.thread_started >= entry.began
        and not lever.same(now, entry.old)
        and any(lever.same(now, value) for value in entry.ours)
    ]
    olds = Counter(entry.old for entry in makers)
    return olds.most_common(1)[0][0] if olds else None


def undo(journal: Journal, target: str | None = None) -> Report:
    """Put back what was changed for a target, or everything, the latest first. Raises MeasureError.

    What others have changed since is left alone; what is refused stays in the journal.
    """
    entries = journal.of(target)
    steps = []
    for entry in entries:
        outcome, why = restore(LEVERS[entry.lever], entry.thing, entry.old, entry.ours)
        new = entry.old if outcome is Outcome.RESTORED else None
        steps.append(Step(entry.lever, entry.thing, outcome, entry.ours[-1], new, why))
    steps += _free_heirs(journal, entries)
    journal.done((s.lever, s.thing) for s in steps if s.outcome is not Outcome.REFUSED)
    return Report(tuple(steps))


def _free_heirs(journal: Journal, entries: Sequence[Entry]) -> list[Step]:
    """Threads and children born since with a value of ours get what they would have had."""
    inherited = [e for e in entries if LEVERS[e.lever].inherited]
    steps: list[Step] = []
    for passed in range(1, _PASSES.stop):
        found = [
            step
            for pid, of_process in _families(inherited).items()
            for thread in threads_of(pid)
            for step in _free(journal, thread, of_process)
        ]
        steps += found
        if not found and passed >= _PASSES.start:
            break
    return steps


def _families(entries: Sequence[Entry]) -> dict[int, list[Entry]]:
    """Processes with entries, and their descendants that are younger, with the entries that count there."""
    found: dict[int, list[Entry]] = {}
    for pid, started in pids_in(entries).items():
        stat = proc.read_stat(pid)
        if stat is None or stat.started != started:
            continue
        own = [e for e in entries if isinstance(e.thing, Thread) and e.thing.pid == pid]
        found.setdefault(pid, []).extend(own)
        first = min(e.began for e in own)
        waiting = proc.children(pid)
        while waiting:
            child = waiting.pop()
            young = proc.read_stat(child)
            if young is not None and young.started >= first and child not in found:
                found[child] = list(own)
                waiting += proc.children(child)
    return found


def _free(journal: Journal, thread: Thread, entries: Sequence[Entry]) -> list[Step]:
    steps = []
    for name in dict.fromkeys(e.lever for e in entries if thread.thread_started >= e.began):
        if (name, thread) in journal.entries:
            continue
        lever = LEVERS[name]
        try:
            now = lever.read(thread)
            wanted = _would_have(entries, name, thread, now)
            if wanted is not None:
                put(lever, thread, wanted)
                steps.append(Step(name, thread, Outcome.RESTORED, now, wanted, "inherited"))
        except (GoneError, RefusedError):
            continue
    return steps


def sweep(
    journal: Journal,
    plan: Plan,
    target: str,
    processes: Mapping[int, int],
    critical: Collection[int],
    known: set[int],
) -> Report:
    """Once a period: new critical threads are set too, new others freed, and what others changed is let go.

    Args:
        known: ids of threads that were looked at the last time; becomes those of now.

    Raises:
        MeasureError: the journal cannot be written.
    """
    steps = _let_go(journal, target)
    seen = (journal.entries, journal.conceded)
    new = [
        thread
        for tid in sorted(critical)
        if (pid := proc.thread_group(tid)) is not None
        and pid in processes
        and (thread := find_thread(pid, tid)) is not None
        and thread.started == processes[pid]
        and not any((name, thread) in which for name in plan.thread_levers for which in seen)
    ]
    if new:
        steps += apply(journal, [s for thread in new for s in plan.settings_for(thread)], target).steps
    inherited = [e for e in journal.of(target) if LEVERS[e.lever].inherited]
    present: set[int] = set()
    for pid, started in processes.items():
        tids = _thread_ids(pid, started)
        for tid in tids - known - set(critical):
            thread = find_thread(pid, tid)
            steps += _free(journal, thread, inherited) if thread else []
        present |= tids
    known.clear()
    known.update(present)
    return Report(tuple(steps))


def _thread_ids(pid: int, started: int) -> set[int]:
    """Empty if the process is gone."""
    try:
        return set() if proc.has_ended(pid, started) else set(proc.thread_ids(pid))
    except TargetGoneError:
        return set()


def _let_go(journal: Journal, target: str) -> list[Step]:
    """Entries of things that are gone, or that others have changed: they are not ours any more."""
    steps = []
    for entry in journal.of(target):
        lever = LEVERS[entry.lever]
        try:
            now = lever.read(entry.thing)
        except GoneError:
            steps.append(Step(entry.lever, entry.thing, Outcome.GONE))
            continue
        except RefusedError:
            continue
        if not any(lever.same(now, value) for value in entry.ours):
            why = f"{now} now, we had set {entry.ours[-1]}: left alone"
            steps.append(Step(entry.lever, entry.thing, Outcome.CONFLICT, entry.ours[-1], None, why))
    journal.done((s.lever, s.thing) for s in steps)
    journal.conceded |= {(s.lever, s.thing) for s in steps if s.outcome is Outcome.CONFLICT}
    return [s for s in steps if s.outcome is Outcome.CONFLICT]
