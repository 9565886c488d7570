"""A diagnosis for the terminal: verdict first, then the figures behind it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from quietcore.agent.attribution import Account
from quietcore.agent.culprits import ranked
from quietcore.agent.diagnosis import Diagnosis
from quietcore.agent.launches import LaunchReport, Pairs
from quietcore.agent.verdict import Outcome, culprit_name
from quietcore.probes import cgroups
from quietcore.probes.readings import ThreadWindow

_STYLE = {
    Outcome.INTERFERENCE: "bold red",
    Outcome.NOT_CPU: "bold green",
    Outcome.NOT_ENOUGH_DATA: "yellow",
    Outcome.CANNOT_TELL: "yellow",
}
_MAX_THREADS = 8
_MAX_CULPRITS = 6


def show(found: Sequence[Diagnosis], console: Console | None = None) -> None:
    """Print the diagnoses of one run."""
    console = console or Console(highlight=False)
    for i, diagnosis in enumerate(found):
        if i:
            console.print()
        _show(diagnosis, console)


def _show(d: Diagnosis, console: Console) -> None:
    whole = d.whole
    console.print(
        f"[bold]{escape(d.target.name)}[/]  {(whole.end - whole.start) / 1e9:.1f} s, {whole.backend}"
    )
    console.print(f"[{_STYLE[d.verdict.outcome]}]{escape(str(d.verdict))}[/]", soft_wrap=True)
    if whole.wall:
        console.print(_summary(whole), soft_wrap=True)
    if d.launches:
        _show_launches(d.launches, console)
    if whole.culprits:
        console.print(_culprits(whole, console.width))
    if whole.threads:
        console.print(_threads(whole))
    for line in _footnotes(d):
        console.print(f"[dim]{escape(line)}[/]", soft_wrap=True)


def _summary(whole: Account) -> str:
    def part(name: str, ns: int | None) -> str:
        share = whole.share(ns)
        return "" if share is None else f"{name} {share:.1%}"

    parts = [
        part("stolen", whole.stolen),
        part("waiting for a CPU", whole.run_delay - (whole.throttled or 0)),
        part("throttled", whole.throttled),
        part("IRQ", whole.irq),
        part("softirq", whole.softirq),
        part("self-contention", whole.self_contention),
        part("idle CPU waking up", whole.wakeup_latency),
        part("tick", whole.tick),
    ]
    return f"critical threads (by {whole.critical_by}): " + ", ".join(p for p in parts if p)


def _show_launches(report: LaunchReport, console: Console) -> None:
    margin = f" ± {report.margin:,.0f}" if report.margin else ""
    seen = "" if report.seen_share > 0.999 else f", probes on {report.seen_share:.1%} of the time"
    console.print(f"launches: {report.estimate:,.0f}{margin}{seen}")
    if report.interval:
        console.print(
            f"  interval p50 {_time(report.interval.p50_ns)}, p99 {_time(report.interval.p99_ns)}, "
            f"stolen {report.interval.stolen_share:.1%}"
        )
    if report.latency:
        console.print(
            f"  call p50 {_time(report.latency.p50_ns)}, p99 {_time(report.latency.p99_ns)}, "
            f"stolen {report.latency.stolen_share:.1%}"
        )
    console.print(
        f"  pairs: {_pairs(report.clean)} without a switch, {_pairs(report.voluntary)} with a voluntary one, "
        f"{_pairs(report.involuntary)} pushed aside",
        soft_wrap=True,
    )
    console.print(
        f"  per 1000 launches: {report.rates.involuntary:.2f} involuntary switches, "
        f"{report.rates.voluntary:.2f} voluntary, {report.rates.interrupts:.2f} interrupts"
    )
    for tail in report.tails:
        part = tail.involuntary / tail.count if tail.count else 0
        console.print(
            f"  P{tail.quantile * 100:.0f}+ intervals (from {_time(tail.threshold_ns)}): {tail.count:,}, "
            f"{part:.1%} with an involuntary switch inside"
        )


def _pairs(pairs: Pairs) -> str:
    return f"{pairs.count:,} ({_time(pairs.p50_ns)})" if pairs.p50_ns else f"{pairs.count:,}"


def _time(ns: float | None) -> str:
    if ns is None:
        return "-"
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns:.0f} ns"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    return table


def _culprits(whole: Account, width: int) -> Table:
    table = _table("stolen by", "share", "time", "cgroup")
    table.columns[-1].justify = "left"
    # long names give way to the figures, which rich would shrink as well
    names = max(width - len("  100.00%  98.8 us  "), 0)
    table.columns[-1].max_width = names // 3
    table.columns[0].max_width = names - names // 3
    for culprit in ranked(whole)[:_MAX_CULPRITS]:
        where = cgroups.short_name(cgroups.path_of(culprit.cgroup) or "") if culprit.cgroup else ""
        share = whole.share(culprit.ns) or 0
        table.add_row(escape(culprit_name(culprit)), f"{share:.2%}", _time(culprit.ns), escape(where))
    if whole.unattributed > 0.001 * whole.wall:
        share = whole.share(whole.unattributed) or 0
        table.add_row("unattributed", f"{share:.2%}", _time(whole.unattributed), "")
    return table


def _threads(whole: Account) -> Table:
    table = _table("thread", "on CPU", "wait", "preempt", "quota", "sleep", "block", "IRQ")
    for column in table.columns[1:]:
        column.min_width = len("100.0%")  # on a narrow terminal the names give way
    order = sorted(
        whole.threads.values(),
        key=lambda t: (t.tid not in whole.critical, -((t.split.on_cpu or 0) + (t.split.run_delay or 0))),
    )
    for thread in order[:_MAX_THREADS]:
        mark = "*" if thread.tid in whole.critical else " "
        table.add_row(f"{mark} {escape(thread.comm)} {thread.tid}", *_split(thread))
    if len(order) > _MAX_THREADS:
        table.add_row(f"  and {len(order) - _MAX_THREADS} more", *[""] * 7)
    return table


def _split(thread: ThreadWindow) -> list[str]:
    def share(ns: int | None) -> str:
        return "-" if ns is None or not thread.wall_ns else f"{ns / thread.wall_ns:.1%}"

    split = thread.split
    # a backend that knows only the sum of waits shows it as waiting
    waiting = split.run_delay if split.runqueue_wait is None else split.runqueue_wait
    taken = None if thread.irq_ns is None else thread.irq_ns + (thread.softirq_ns or 0)
    values = (split.on_cpu, waiting, split.preempted, split.throttled, split.sleeping, split.blocked, taken)
    return [share(ns) for ns in values]


def _footnotes(d: Diagnosis) -> list[str]:
    lines = []
    if d.seen_share is not None and d.overhead is not None:
        lines.append(f"launch probes on {d.seen_share:.1%} of the time, est. {d.overhead:.2%} of one core")
    if d.warm_up:
        lines.append(f"the first {len(d.warm_up)} s were warm-up and do not count for the verdict")
    if d.whole.steal_ns:
        lines.append(f"the hypervisor reports {_time(d.whole.steal_ns)} stolen from this machine's CPUs")
    lines += [f"lost: {name} {n}" for name, n in d.losses.items()]
    if d.missing:
        lines.append("not visible to this backend: " + "; ".join(d.missing))
    return lines + list(d.notes)
