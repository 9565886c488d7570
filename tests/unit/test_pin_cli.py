"""``quietcore pin``: what it prints, and its exit codes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.unit.boards import A, Board, settings

from quietcore.agent.cli import pin
from quietcore.agent.pin import actuate
from quietcore.agent.pin.journal import Journal
from quietcore.agent.pin.owners import PLACING, Owner
from quietcore.agent.pin.plan import Plan, Proposal
from quietcore.probes.errors import MeasureError

PLAN = Plan("affinity", "a quiet CPU", tuple(settings(a=11, b=21)), frozenset({0}))
OWNER = Owner("kubelet", PLACING, "kubelet places it", "ask kubelet")


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "pin.journal"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(pin.command, arguments)


def proposing(monkeypatch: pytest.MonkeyPatch, proposal: Proposal) -> None:
    whole = SimpleNamespace(critical=frozenset({9}), stolen=5, share=lambda ns: ns / 10)
    found = SimpleNamespace(
        target=SimpleNamespace(name="server [1]"), whole=whole, verdict="interference 50.0%"
    )

    def propose(*_: object) -> Any:
        return [(found, proposal)]

    monkeypatch.setattr(pin, "_propose", propose)


def apply(journal: Path) -> Result:
    return run("apply", "--pid", str(os.getpid()), "--journal", str(journal))


def test_a_plan_changes_nothing(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    proposing(monkeypatch, Proposal((PLAN,), (), ()))
    done = run("plan", "--pid", str(os.getpid()))
    assert done.exit_code == 0
    assert "server [1]: interference 50.0%\n  1. affinity: a quiet CPU\n" in done.output
    assert board.writes == []


def test_a_plan_as_json(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    proposing(monkeypatch, Proposal((), (PLAN,), (OWNER,)))
    done = run("plan", "--pid", str(os.getpid()), "--json")
    assert done.exit_code == 1  # only what others own
    document = json.loads(done.output)
    assert document["schema"] == "quietcore.pin/1"
    (target,) = document["targets"]
    assert (target["target"], target["stolen"], target["plans"]) == ("server [1]", 0.5, [])
    assert target["blocked"][0]["settings"][0] == {"lever": "board", "thing": "IRQ 1 (x)", "value": 11}
    assert target["owners"][0]["name"] == "kubelet"


def test_owners_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    proposing(monkeypatch, Proposal((), (PLAN,), (OWNER,)))
    done = run("plan", "--pid", str(os.getpid()))
    assert "left alone: kubelet places it; ask kubelet" in done.output
    assert "not ours to do: affinity" in done.output


def test_apply_status_restore(board: Board, journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proposing(monkeypatch, Proposal((PLAN,), (), ()))
    done = apply(journal)
    assert done.exit_code == 0
    assert "IRQ 1 (x): value 10 -> 11: set" in done.output
    assert f"quietcore pin restore --journal {journal} undoes it" in done.output
    assert board.values[A] == 11

    status = run("status", "--journal", str(journal))
    assert status.exit_code == 0
    assert "server [1]: IRQ 1 (x): board 10 -> 11: in force" in status.output
    document = json.loads(run("status", "--json", "--journal", str(journal)).output)
    assert document["applied"]
    assert [entry["state"] for entry in document["entries"]] == ["in force", "in force"]

    again = apply(journal)
    assert isinstance(again.exception, MeasureError)
    assert "something is in force for server [1] already; quietcore pin restore" in str(again.exception)

    back = run("restore", "--journal", str(journal))
    assert back.exit_code == 0
    assert "server [1]: 2 settings put back" in back.output
    assert board.values[A] == 10
    assert run("status", "--journal", str(journal)).output == "nothing is in force\n"
    assert run("restore", "--journal", str(journal)).output == "nothing is in force\n"


def test_what_could_not_be_set_is_told_by_the_code(
    board: Board, journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposing(monkeypatch, Proposal((PLAN,), (), ()))
    board.locked.add(A)
    done = apply(journal)
    assert done.exit_code == 1
    assert "IRQ 1 (x): value 10 -> 11: refused (managed)" in done.output


def test_nothing_to_apply(board: Board, journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proposing(monkeypatch, Proposal((), (), ()))
    done = apply(journal)
    assert done.exit_code == 1
    assert "nothing can be done" in done.output
    assert journal.read_bytes() == b""


def test_conflicts_are_shown_and_told(board: Board, journal: Path) -> None:
    with Journal.open(journal) as held:
        actuate.apply(held, settings(a=11, b=21), "server [1]")
    board.values[A] = 99
    status = run("status", "--journal", str(journal))
    assert status.exit_code == 1
    assert "board 10 -> 11: conflict (99 now)" in status.output
    done = run("restore", "--json", "--journal", str(journal))
    assert done.exit_code == 1
    kinds = [event["kind"] for event in json.loads(done.output)["events"]]
    assert kinds == ["restore", "conflict"]
    assert board.values[A] == 99


def test_refused_on_restore(board: Board, journal: Path) -> None:
    with Journal.open(journal) as held:
        actuate.apply(held, settings(a=11), "server [1]")
    board.locked.add(A)
    assert run("restore", "--journal", str(journal)).exit_code == 1
    assert run("status", "--journal", str(journal)).exit_code == 0


def test_damage_is_told(journal: Path) -> None:
    journal.write_text("nonsense\n")
    journal.chmod(0o600)
    done = run("status", "--journal", str(journal))
    assert (done.exit_code, done.output) == (1, f"nothing is in force\n1 lines of {journal} cannot be read\n")


def test_restore_while_an_agent_runs(journal: Path) -> None:
    with Journal.open(journal):
        done = run("restore", "--journal", str(journal))
    assert isinstance(done.exception, MeasureError)
    assert "another agent has the journal" in str(done.exception)


@pytest.mark.parametrize("arguments", [["apply"], ["plan", "--pid", "0"], ["plan", "--duration", "0"], ["x"]])
def test_wrong_usage(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize("verb", ["plan", "apply", "status", "restore"])
def test_every_verb_explains_its_codes(verb: str) -> None:
    done = run(verb, "--help")
    assert done.exit_code == 0
    assert "Exit codes: 0" in done.output
