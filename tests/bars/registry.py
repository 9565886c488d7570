"""All bars, in the order in which they are worth running."""

from __future__ import annotations

from tests.bars import (
    clean,
    doctor,
    driftsched_live,
    feedback_page,
    irq,
    launches,
    live_order,
    pin_crash,
    pin_rollback,
    run_delay,
    scheduling_cost,
    split,
    startup,
    thief,
    vllm,
)
from tests.bars.bar import Bar

BARS: tuple[Bar, ...] = (
    doctor.BAR,
    startup.BAR,
    launches.BAR,
    split.BAR,
    run_delay.BAR,
    thief.BAR,
    clean.BAR,
    irq.BAR,
    vllm.BAR,
    scheduling_cost.BAR,
    feedback_page.BAR,
    live_order.BAR,
    driftsched_live.BAR,
    pin_crash.BAR,
    pin_rollback.BAR,
)
