"""Tests of vLLM that must fail with our policy on, each for a reason that is a choice of ours."""

from __future__ import annotations

_PREFILL = "a shorter prompt goes first: shared cost counts the prefill"
_VICTIM = "the test wants the tail of the running list preempted; ours is the one with the least computed"

# Test by module and name -> reason. One that passes is as wrong here as one that fails and is not here.
ALLOWED: dict[str, str] = {
    "test_scheduler::test_schedule_order[True]": _PREFILL,
    "test_scheduler::test_schedule_order[False]": _PREFILL,
    "test_scheduler::test_fcfs_mixed_blocked_types_remote_load_drains_first": _PREFILL,
    "test_scheduler::test_async_load_reservation_prevents_wedge_e2e": _PREFILL,
    "test_async_scheduler::test_kv_pressure_preempt_mid_handoff[kv_producer-False]": _VICTIM,
    "test_async_scheduler::test_kv_pressure_preempt_mid_handoff[kv_consumer-False]": _VICTIM,
}
