"""A command whose sub-commands are modules, imported when they are called."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click


class Verbs(click.Group):
    """Verbs are imported on demand: ``diagnose`` has to be attached within a second.

    Args:
        package: where the module of each verb is.
        verbs: by name, what each does.
    """

    def __init__(self, package: str, verbs: Mapping[str, str], **settings: Any) -> None:
        super().__init__(**settings)
        self._package = package
        self._verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._verbs)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self._verbs:
            return None
        command: click.Command = importlib.import_module(f"{self._package}.{name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self._verbs.items()))
