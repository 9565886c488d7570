"""A pytest plugin for vLLM's own tests: they get our scheduler classes under vLLM's names.

It must be loaded (``-p substitute``) before a test imports vLLM's scheduler.
"""

from __future__ import annotations

import os

if os.environ.get("QUIETCORE_SUBSTITUTE") == "1":
    import vllm.v1.core.sched.async_scheduler
    import vllm.v1.core.sched.scheduler

    from quietcore.scheduler.vllm import DriftScheduler, SyncDriftScheduler

    vllm.v1.core.sched.scheduler.Scheduler = SyncDriftScheduler
    vllm.v1.core.sched.async_scheduler.Scheduler = SyncDriftScheduler
    vllm.v1.core.sched.async_scheduler.AsyncScheduler = DriftScheduler
