"""Benchmarks of what the scheduler decides: estimators on recorded lengths, policies in virtual time.

Nothing here is imported by the plug-in. What needs numpy, scipy, pyarrow or vLLM imports it when it runs.
"""

from __future__ import annotations

__all__ = ["BenchError", "InputError"]


class BenchError(Exception):
    """A benchmark cannot run here; the message names the cause, `remedy` what to do."""

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(cause)
        self.remedy = remedy


class InputError(BenchError):
    """A file given to a benchmark is not what it should be."""
