"""The command line: ``quietcore VERB``. One module a verb, imported when it is called."""

from __future__ import annotations

import sys

import click

from quietcore import __version__
from quietcore.agent.cli.exit_codes import CANNOT_MEASURE
from quietcore.agent.cli.verbs import Verbs

VERBS = {
    "diagnose": "Measure a running server and say whether, and by whom, it is disturbed.",
    "doctor": "Load, attach and fire every BPF program, and check the host.",
    "demo": "Show a clean and a disturbed launcher, measured for real; no GPU needed.",
    "bench": "Benchmark estimators and queue policies on recorded requests.",
}


@click.group(cls=Verbs, package=__name__, verbs=VERBS)
@click.version_option(__version__)
def cli() -> None:
    """Measure how interference on the CPU slows the launch path of LLM servers.

    Exit codes: 0 healthy, 1 interference (or a failed check) found, 2 wrong usage,
    3 cannot measure.
    """


def main() -> None:
    """Entry point: errors are one line, and an exit code."""
    from quietcore.probes.errors import MeasureError

    try:
        cli(prog_name="quietcore")
    except MeasureError as e:
        click.echo(f"quietcore: {e}", err=True)
        sys.exit(CANNOT_MEASURE)
    except BrokenPipeError:
        # the reader has seen enough
        sys.stderr.close()
        sys.exit(CANNOT_MEASURE)
