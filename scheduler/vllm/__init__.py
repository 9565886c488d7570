"""The plug-in for vLLM: ``--scheduler-cls quietcore.scheduler.vllm.DriftScheduler``.

vLLM is imported when the class is asked for and not before, so that the parts that need no engine can be used
and tested without one.
"""

from __future__ import annotations

from typing import Any

__all__ = ["DriftScheduler", "SyncDriftScheduler"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from quietcore.scheduler.vllm import scheduler

        return getattr(scheduler, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
