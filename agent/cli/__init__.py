"""The command line: ``quietcore VERB``. One module a verb, imported when it is called."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback

import click

from quietcore import __version__
from quietcore.agent.cli import interrupt
from quietcore.agent.cli.exit_codes import CANNOT_MEASURE, HEALTHY, INTERRUPTED, USAGE
from quietcore.agent.cli.verbs import Verbs

VERBS = {
    "diagnose": "Measure a running server and say whether, and by whom, it is disturbed.",
    "doctor": "Load, attach and fire every BPF program, and check the host.",
    "pin": "Plan, apply, show and undo quiet CPUs for launch threads.",
    "demo": "Show a clean and a disturbed launcher, measured for real; no GPU needed.",
    "bench": "Benchmark estimators and queue policies on recorded requests.",
}
# in the environment: show tracebacks
_TRACEBACK = "QUIETCORE_TRACEBACK"


@click.group(cls=Verbs, package=__name__, verbs=VERBS)
@click.version_option(__version__)
def cli() -> None:
    """Measure how interference on the CPU slows the launch path of LLM servers.

    Exit codes: 0 healthy, 1 interference (or a failed check) found, 2 wrong usage,
    3 cannot measure, 130 interrupted before there was a result.
    """


def main() -> None:
    """Entry point: whatever goes wrong is one line, and a documented exit code."""
    interrupt.deliver_dropped()
    code = _call()
    try:
        print(end="", flush=True)
    except OSError as e:
        code = _fail(f"the output could not be written: {e.strerror}")
        # what is left of it must not be tried again at the interpreter's end, which would end with 120
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _call() -> int:
    from quietcore.probes.errors import MeasureError

    if "_QUIETCORE_COMPLETE" in os.environ:  # a shell asks click for words
        cli.main(prog_name="quietcore")
    try:
        # not by cli.main(): it ends with 1, which means interference, for Ctrl-C and closed pipes
        with cli.make_context("quietcore", sys.argv[1:]) as context:
            cli.invoke(context)
    except click.exceptions.Exit as e:
        return e.exit_code
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else HEALTHY
    except BrokenPipeError:
        return _fail("the output was closed before all of it was written")
    except click.ClickException as e:
        e.show()
        return USAGE if isinstance(e, click.UsageError) else CANNOT_MEASURE
    except (click.Abort, KeyboardInterrupt):
        with contextlib.suppress(OSError):
            click.echo(err=True)  # closes the line in which the terminal shows ^C
        return INTERRUPTED
    except MeasureError as e:
        return _fail(str(e))
    except Exception as e:
        if os.environ.get(_TRACEBACK):
            traceback.print_exc()
        words = " ".join(f"{type(e).__name__}: {e}".split())
        return _fail(f"{words}; {_TRACEBACK}=1 shows where this, which was not foreseen, happened")
    return HEALTHY


def _fail(text: str) -> int:
    with contextlib.suppress(OSError):
        click.echo(f"quietcore: {text}", err=True)
    return CANNOT_MEASURE
