"""``scripts/bars``: choosing, printing, exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.bars import __main__ as command
from tests.bars.bar import Bar, BarError, Outcome
from tests.bars.registry import BARS

from quietcore.probes.errors import MeasureError


def make_bar(name: str, *, met: bool = True, error: Exception | None = None) -> Bar:
    def measure(runs: int, seconds: float) -> Outcome:
        if error:
            raise error
        return Outcome(met, f"{runs} x {seconds:g}", ("run", "ns"), [["1", "20"]], ["as it is"], [1])

    return Bar(name, f"promise of {name}", 3, 5, measure)


@pytest.fixture(autouse=True)
def _as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)


def test_prints_a_line_a_bar(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "bars.json"
    bars = [make_bar("one"), make_bar("two", met=False)]
    assert command.main(["two", "--runs", "2", "--json", str(out)], bars) == command.MISSED
    printed = capsys.readouterr().out
    assert "BAR two: promise of two | 2 x 5 | MISSED\n" in printed
    assert "BAR one" not in printed
    assert re.match(r"machine: .*, \d+ CPUs", printed)
    document = json.loads(out.read_text("utf-8"))
    assert document["machine"]["cpus"]
    (two,) = document["bars"]
    assert (two["command"], two["met"], two["raw"]) == ("scripts/bars two --runs 2", False, [1])


def test_all_met_is_zero() -> None:
    assert command.main([], [make_bar("one"), make_bar("two")]) == command.MET


@pytest.mark.parametrize("error", [BarError("no iperf3"), MeasureError("no BTF")])
def test_what_cannot_be_measured_is_not_met(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    bars = [make_bar("one", error=error), make_bar("two", met=False)]
    assert command.main([], bars) == command.CANNOT_MEASURE
    printed = capsys.readouterr().out
    assert "BAR one: promise of one | no " in printed
    # the rest is measured all the same
    assert "BAR two: promise of two | 3 x 5 | MISSED" in printed


@pytest.mark.parametrize("arguments", [["three"], ["--runs", "0"], ["--seconds", "0"], ["--seconds", "nan"]])
def test_nonsense_is_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments, [make_bar("one")])
    assert stopped.value.code == command.USAGE
    assert capsys.readouterr().err


def test_needs_root(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert command.main([], [make_bar("one")]) == command.CANNOT_MEASURE
    assert "root" in capsys.readouterr().err


def test_every_bar_has_a_name_of_its_own_and_a_row_in_the_docs() -> None:
    names = [bar.name for bar in BARS]
    assert len(set(names)) == len(names)
    measured = (Path(__file__).parents[2] / "docs" / "measured.md").read_text("utf-8")
    assert [name for name in names if f"scripts/bars {name}" not in measured] == []
