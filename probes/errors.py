"""What can go wrong while measuring, in the user's words."""

from __future__ import annotations


class MeasureError(Exception):
    """A measurement cannot be made. ``str()`` is one line: the cause, then the remedy.

    Attributes:
        cause: what failed, without a full stop.
        remedy: what the user can do about it; empty if nothing.
        detail: lines for ``--verbose`` and doctor, e.g. the verifier's log.
    """

    def __init__(self, cause: str, remedy: str = "", detail: str = "") -> None:
        super().__init__(f"{cause}; {remedy}" if remedy else cause)
        self.cause = cause
        self.remedy = remedy
        self.detail = detail


class BackendUnavailableError(MeasureError):
    """A backend cannot run on this host. ``step`` names what failed: library, load, attach, ..."""

    def __init__(self, backend: str, step: str, cause: str, remedy: str = "", detail: str = "") -> None:
        super().__init__(f"{backend}: {step} failed: {cause}", remedy, detail)
        self.backend = backend
        self.step = step


class TargetGoneError(MeasureError):
    """The target process does not exist (any more)."""
