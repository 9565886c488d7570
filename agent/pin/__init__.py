"""Pin control: puts launch threads on quiet CPUs, keeps what a measurement shows to help, undoes the rest."""

from __future__ import annotations

from quietcore.agent.pin.controller import Controller
from quietcore.agent.pin.events import Event, Mode, Reading
from quietcore.agent.pin.journal import DEFAULT_PATH, JournalBusyError
from quietcore.agent.pin.restore import restore_journal

__all__ = ["DEFAULT_PATH", "Controller", "Event", "JournalBusyError", "Mode", "Reading", "restore_journal"]
