"""Measures what the project promises: see ``scripts/bars --help``."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bars.bar import Bar, BarError, describe_machine, table
from tests.bars.registry import BARS

from quietcore.probes.errors import MeasureError

MET, MISSED, USAGE, CANNOT_MEASURE = 0, 1, 2, 3


def measure(bar: Bar, runs: int | None, seconds: float | None, command: str) -> dict[str, Any]:
    """Measure one bar, print its table and its line; returns what the JSON file says of it."""
    runs, seconds = runs or bar.runs, seconds or bar.seconds
    print(f"\n{bar.name}: {runs} x {seconds:g} s", flush=True)
    began = time.monotonic()
    said: dict[str, Any] = {
        "name": bar.name,
        "promise": bar.promise,
        "runs": runs,
        "seconds": seconds,
        "command": command,
    }
    try:
        outcome = bar.measure(runs, seconds)
    except (BarError, MeasureError) as error:
        print(f"BAR {bar.name}: {bar.promise} | {error} | NOT MEASURED", flush=True)
        return {**said, "error": str(error)}
    if outcome.columns:
        print(table(outcome.columns, outcome.rows))
    for remark in outcome.remarks:
        print(f"  {remark}")
    print(bar.line(outcome), flush=True)
    return {
        **said,
        "met": outcome.met,
        "figure": outcome.figure,
        "remarks": list(outcome.remarks),
        "took_seconds": round(time.monotonic() - began, 1),
        "raw": outcome.raw,
    }


def exit_code(results: Sequence[dict[str, Any]]) -> int:
    """A bar that could not be measured outweighs one that was missed."""
    if any("error" in result for result in results):
        return CANNOT_MEASURE
    return MET if all(result["met"] for result in results) else MISSED


def main(arguments: Sequence[str] | None = None, bars: Sequence[Bar] = BARS) -> int:
    """Measure the named bars, or all. Returns the exit status."""
    options = _parse(arguments, bars)
    by_name = {bar.name: bar for bar in bars}
    if os.geteuid() != 0:
        print("bars: needs root: run sudo scripts/bars", file=sys.stderr)
        return CANNOT_MEASURE
    # so that servers, cgroups and folders are cleared away, as with Ctrl-C
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    machine = describe_machine()
    print(
        "machine: {cpu}, {cpus} CPUs, {memory_gib} GiB, Linux {kernel} {architecture}, {kind}; {date}; "
        "load average {load_average:.2f}".format(
            kind="guest" if machine["guest"] else "bare metal", **machine
        )
    )
    results = []
    for name in options.names or by_name:
        command = f"scripts/bars {name}" + "".join(
            f" --{option} {value:g}" for option in ("runs", "seconds") if (value := getattr(options, option))
        )
        results.append(measure(by_name[name], options.runs, options.seconds, command))
        if options.json:
            text = json.dumps({"schema": "quietcore.bars/1", "machine": machine, "bars": results}, indent=1)
            options.json.write_text(f"{text}\n", encoding="utf-8")
    print()
    for result in results:
        verdict = result["error"] if "error" in result else "met" if result["met"] else "MISSED"
        print(f"{result['name']}: {verdict}")
    return exit_code(results)


def _parse(arguments: Sequence[str] | None, bars: Sequence[Bar]) -> argparse.Namespace:
    listing = "\n".join(f"  {bar.name:15} {bar.promise} ({bar.runs} x {bar.seconds:g} s)" for bar in bars)
    parser = argparse.ArgumentParser(
        prog="scripts/bars",
        description="Measures what the project promises, on this machine, as root; leave it alone meanwhile.",
        epilog=f"bars:\n{listing}\n\n"
        "exit codes: 0 all met, 1 one missed, 2 wrong usage, 3 one could not be measured",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [bar.name for bar in bars]
    parser.add_argument("names", nargs="*", metavar="NAME", help="bars to measure (default: all)")
    parser.add_argument("--runs", type=_positive, help="how often (default: see below)")
    parser.add_argument("--seconds", type=float, help="how long each time (default: see below)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row to FILE")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in names]:
        parser.error(f"no bar is called {unknown[0]}: there are {', '.join(names)}")
    if options.seconds is not None and not 1 <= options.seconds < math.inf:
        parser.error("--seconds must be 1 or more")
    return options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
