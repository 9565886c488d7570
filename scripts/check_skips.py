"""Adds up the JUnit files of scripts/test, names what was skipped, and closes with one line of totals.

Exits 1 when a test or a step failed, or a part wrote no report. With --strict it also fails when a part that
must really run (bcc, vllm) skipped a test or had none: a green run must not hide a part that did not happen.
"""

from __future__ import annotations

import argparse
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

MUST_RUN = ("bcc", "vllm")


@dataclass
class Part:
    """What one pytest invocation did."""

    name: str
    passed: int = 0
    failed: int = 0
    skipped: list[str] = field(default_factory=list)


def read_part(name: str, path: Path) -> Part:
    """Reads one JUnit file as pytest writes it."""
    part = Part(name)
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            part.failed += 1
        elif skip is not None and skip.get("type") != "pytest.xfail":
            where = f"{case.get('classname', '')}.{case.get('name', '')}".strip(".")
            part.skipped.append(f"{where}: {skip.get('message', 'no reason given')}")
        else:
            part.passed += 1
    return part


def find_faults(parts: list[Part], strict: bool) -> list[str]:
    """Says what of the strict rule is broken; a lenient run has no such faults."""
    faults = []
    for part in parts:
        if strict and part.name in MUST_RUN:
            if part.skipped:
                faults.append(f"{part.name}: {len(part.skipped)} skipped, but this part must run here")
            if not part.passed + part.failed:
                faults.append(f"{part.name}: no test ran, but this part must run here")
    return faults


def main(arguments: list[str] | None = None) -> int:
    """Prints the summary and returns the exit status of the whole test run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("reports", nargs="*", metavar="PART=FILE")
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("--failed-step", action="append", default=[], metavar="NAME")
    options = parser.parse_args(arguments)

    parts: list[Part] = []
    faults = [f"step failed: {name}" for name in options.failed_step]
    for report in options.reports:
        name, _, path = report.partition("=")
        try:
            parts.append(read_part(name, Path(path)))
        except (OSError, ElementTree.ParseError) as error:
            faults.append(f"{name}: no readable report ({error})")
    faults += find_faults(parts, options.strict)

    for part in parts:
        print(f"{part.name}: {part.passed} passed, {part.failed} failed, {len(part.skipped)} skipped")
        for skipped in part.skipped:
            print(f"  skipped {skipped}")
        if not part.passed + part.failed:
            print(f"  part {part.name}: nothing of it ran")
    for absent in [name for name in ("core", *MUST_RUN) if name not in {part.name for part in parts}]:
        print(f"part {absent}: not run")
    for fault in faults:
        print(f"FAILED {fault}")

    failed = sum(part.failed for part in parts)
    totals = f"{sum(part.passed for part in parts)} passed, {failed} failed"
    skips = sum(len(part.skipped) for part in parts)
    print(f"{totals}, {skips} skipped" if skips else totals)
    return 1 if faults or failed else 0


if __name__ == "__main__":
    sys.exit(main())
