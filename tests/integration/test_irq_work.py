"""The interrupt that doctor provokes, in the kernel's own count."""

from __future__ import annotations

from pathlib import Path

import pytest

from quietcore.probes.irq_work import queue_irq_work

pytestmark = pytest.mark.root


def count_interrupts() -> int:
    for line in Path("/proc/interrupts").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == "IWI":
            return sum(int(n) for n in counts.split() if n.isdigit())
    pytest.skip("this kernel does not count irq_work interrupts")


def test_each_call_is_one_interrupt_at_least() -> None:
    before = count_interrupts()
    for _ in range(5):
        queue_irq_work()
    assert count_interrupts() - before >= 5
