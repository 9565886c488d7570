"""What reaches a reader of a diagnosis: JSON and the terminal."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console
from tests.unit.factories import MS, SECOND, make_account, make_diagnosis

from quietcore.agent.attribution import Culprit
from quietcore.agent.report import document, terminal
from quietcore.agent.verdict import Outcome, ThreadShare

CROWD = [Culprit("process", "stress-ng-cpu", 50 * MS, pid=5_000_000 + i) for i in range(12)]
WHOLE = replace(
    make_account(run_delay=600 * MS, culprits=CROWD), quotas={"/sys/fs/cgroup/cpu/engine": 1500 * MS}
)


def test_a_crowd_is_one_line_of_the_table() -> None:
    out = io.StringIO()
    terminal.show([make_diagnosis(WHOLE)], Console(file=out, width=120))
    (line,) = [line for line in out.getvalue().splitlines() if "stress-ng-cpu" in line]
    assert line.split() == ["stress-ng-cpu", "x12", "6.00%", "600", "ms"]


def test_a_pipe_gets_the_verdict_in_one_line_and_all_shares() -> None:
    """Names give way to the figures beside them, however long they are."""
    path = "/sys/fs/cgroup/cpu/" + "/".join(f"level-{i}-of-a-long-path" for i in range(6))
    whole = make_account(run_delay=3 * SECOND, culprits=[Culprit("quota", path, 3 * SECOND), *CROWD])
    found = make_diagnosis(whole, outcome=Outcome.INTERFERENCE)
    out = io.StringIO()
    found = replace(found, verdict=replace(found.verdict, culprits=whole.culprits[:1]))
    terminal.show([found], Console(file=out, width=80))
    lines = out.getvalue().splitlines()
    (verdict,) = [line for line in lines if line.startswith("interference")]
    assert verdict.endswith("level-5-of-a-long-path")
    (row,) = [line for line in lines if line.startswith("CPU quota of")]
    assert "30.00%" in row
    assert "3 s" in row


def test_json_has_both_the_crowd_and_its_processes() -> None:
    found = make_diagnosis(WHOLE, outcome=Outcome.INTERFERENCE)
    worst = ThreadShare(7, "rank0", 0.1, None)
    found = replace(
        found, verdict=replace(found.verdict, culprits=(replace(CROWD[0], kind="processes", count=12),))
    )
    (target,) = document.diagnoses([replace(found, verdict=replace(found.verdict, worst=worst))])["targets"]
    assert target["verdict"]["culprits"] == ["stress-ng-cpu x12"]
    assert target["verdict"]["worst_thread"] == {"tid": 7, "comm": "rank0", "share": 0.1}
    assert len(target["culprits"]) == 12
    assert target["throttled_cgroups"] == {"/sys/fs/cgroup/cpu/engine": 1.5}


def test_json_leaves_out_what_is_not_there() -> None:
    (target,) = document.diagnoses([make_diagnosis(make_account(wall=SECOND))])["targets"]
    assert "worst_thread" not in target["verdict"]
    assert "throttled_cgroups" not in target


def test_every_outcome_can_be_shown() -> None:
    for outcome in Outcome:
        out = io.StringIO()
        terminal.show([make_diagnosis(WHOLE, outcome=outcome)], Console(file=out, width=120))
        assert outcome.value in out.getvalue()
