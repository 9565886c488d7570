"""Tests of vLLM that must fail with our policy on, each for a reason that is a choice of ours."""

from __future__ import annotations

_PREFILL = "a shorter prompt goes first: shared cost counts the prefill"
_MARGIN = f"{_PREFILL}, and the test's connector answers in the order in which requests came"
_VICTIM = "the test wants the tail of the running list preempted; ours is the one with the least computed"

_RESERVES = "test_remote_prefill_lifecycle::test_async_load_reserves_blocks_for_promotion_margin"
_MAMBA = "test_remote_prefill_lifecycle::test_async_load_does_not_double_reserve_mamba_spec_blocks"
_HANDOFF = "test_async_scheduler::test_kv_pressure_preempt_mid_handoff"

# Test by module and name -> reason. One that passes is as wrong here as one that fails and is not here.
ALLOWED: dict[str, str] = {
    "test_scheduler::test_schedule_order[True]": _PREFILL,
    "test_scheduler::test_schedule_order[False]": _PREFILL,
    "test_scheduler::test_fcfs_mixed_blocked_types_remote_load_drains_first": _PREFILL,
    "test_scheduler::test_async_load_reservation_prevents_wedge_e2e": _PREFILL,
    f"{_RESERVES}[single-group]": _MARGIN,
    f"{_RESERVES}[multiple-groups]": _MARGIN,
    f"{_RESERVES}[different-block-sizes]": _MARGIN,
    f"{_MAMBA}[none-128-18]": _MARGIN,
    f"{_MAMBA}[align-16-18]": _MARGIN,
    f"{_HANDOFF}[kv_producer-False]": _VICTIM,
    f"{_HANDOFF}[kv_consumer-False]": _VICTIM,
}
