"""``quietcore bench``: one module a verb, imported when it is called."""

from __future__ import annotations

import click

from quietcore.agent.cli.verbs import Verbs

VERBS = {
    "drift": "How well estimators predict output lengths on recorded requests.",
    "policy": "What queue policies are worth: vLLM's real scheduler class in virtual time.",
    "driftsched": "The published experiment of DriftSched: two phases, three tenants, five schedulers.",
    "steptime": "How soon step times are foreseen right when noise begins or ends, in virtual time.",
    "serve": "Drive a live OpenAI server with a recorded stream.",
}


@click.group(cls=Verbs, package=__name__, verbs=VERBS)
def command() -> None:
    """Benchmark estimators and queue policies on recorded requests.

    Exit codes: 0 done, 1 requests failed (on live servers), 2 wrong usage or input, 3 cannot run here (the
    line says what is missing).
    """
