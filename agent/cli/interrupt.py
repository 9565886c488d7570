"""Ctrl-C where Python drops it: no exception leaves a callback that a C library makes, or a finalizer."""

from __future__ import annotations

import signal
import sys
import threading

RETRY_S = 0.02
"""Until a dropped Ctrl-C is tried again: long enough for the callback to return."""


def deliver_dropped() -> None:
    """From now on a Ctrl-C that Python drops comes again, until it finds code that can be interrupted.

    libbpf reports each step of loading through such a callback, so most of them would be lost there.
    """
    before = sys.unraisablehook

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            before(dropped)
            return
        again = threading.Timer(RETRY_S, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
