"""Buckets of durations: their bounds, the kernel's way to find them, and what is read off them."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.unit.factories import MS, SECOND, US, make_durations

from quietcore.probes.durations import EMPTY, SLOTS, Theft, quantile, slot_bound, slot_of, tail

BPF = Path(__file__).resolve().parents[2] / "probes" / "bpf"
TYPES = """
#include <stdio.h>
typedef unsigned int __u32;
typedef unsigned long long __u64;
#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif
"""
MAIN = """
int main(void) {
    __u64 ns;
    while (scanf("%llu", &ns) == 1) printf("%u\\n", hist_slot(ns));
    return 0;
}
"""
POWERS = [(1 << n) + d for n in range(64) for d in (-1, 0, 1)]
STEPS = [((8 + step) << octave) + d for octave in range(36) for step in range(8) for d in (-1, 0, 1)]
LONG = [68 * SECOND, 69 * SECOND, 275 * SECOND, 3600 * SECOND, (1 << 64) - 1]
VALUES = [*range(300), *POWERS, *STEPS, *LONG]


def test_each_bucket_holds_the_values_up_to_and_including_its_bound() -> None:
    for slot in range(SLOTS - 1):
        assert slot_of(slot_bound(slot)) == slot
        assert slot_of(slot_bound(slot) + 1) == slot + 1


def test_bounds_rise_by_an_eighth_of_an_octave() -> None:
    bounds = [slot_bound(slot) for slot in range(SLOTS)]
    assert bounds[:10] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    for lower, upper in itertools.pairwise(bounds[7:]):
        assert 1 < upper / lower <= 1.125
    assert bounds[-1] > 68 * SECOND


def test_what_is_shorter_or_longer_than_all_buckets_goes_to_the_outermost() -> None:
    assert slot_of(-5) == slot_of(0) == slot_of(1) == 0
    assert slot_of(slot_bound(SLOTS - 1) * 2) == SLOTS - 1


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_kernel_side_finds_the_same_bucket(tmp_path: Path) -> None:
    header = (BPF / "launch.h").read_text()
    found = re.search(r"^static __always_inline __u32 hist_slot.*?^}", header, re.M | re.S)
    assert found
    source = f'{TYPES}#include "{BPF / "layout.h"}"\n{found[0]}{MAIN}'
    (tmp_path / "slots.c").write_text(source)
    subprocess.run(["cc", "-Wall", "-Werror", "-o", "slots", "slots.c"], cwd=tmp_path, check=True)
    values = [value for value in VALUES if 0 <= value < 1 << 64]
    printed = subprocess.run(
        [tmp_path / "slots"], input="\n".join(map(str, values)), capture_output=True, text=True, check=True
    )
    assert list(map(int, printed.stdout.split())) == [slot_of(value) for value in values]


@pytest.mark.parametrize(
    ("values", "q", "slot_holds"),
    [
        ([5], 0.5, 5),
        ([1, 2, 3, 4], 0.5, 2),
        ([1, 2, 3, 4], 0.51, 3),
        ([1, 2, 3, 4], 1.0, 4),
        ([10 * US] * 99 + [5 * MS], 0.99, 10 * US),
        ([10 * US] * 98 + [5 * MS] * 2, 0.99, 5 * MS),
        ([10 * US] * 19 + [5 * MS], 0.95, 10 * US),
        ([2 * MS], 0.0, 2 * MS),
    ],
)
def test_quantile_is_the_bound_of_the_bucket_it_falls_in(
    values: list[int], q: float, slot_holds: int
) -> None:
    found = quantile(make_durations(values).histogram, q)
    assert found == slot_bound(slot_of(slot_holds))
    assert slot_holds <= found <= slot_holds * 1.125


@pytest.mark.parametrize("q", [0.5, 0.95, 0.99])
def test_quantile_is_not_off_by_one_through_rounding(q: float) -> None:
    percent = round(q * 100)
    for n in range(100, 3000, 100):
        below = n * percent // 100
        histogram = make_durations([US] * below + [MS] * (n - below)).histogram
        assert quantile(histogram, q) == slot_bound(slot_of(US))


def test_quantile_of_nothing_is_unknown() -> None:
    assert quantile(EMPTY.histogram, 0.5) is None
    assert tail(EMPTY, 0.95) is None


def test_tail_counts_from_the_quantiles_bucket_up_by_what_happened_within() -> None:
    durations = make_durations([10 * US] * 95 + [MS], slept=[MS] * 1, pushed=[MS, 2 * MS, 2 * US])
    found = tail(durations, 0.97)
    assert found
    assert found.threshold_ns == slot_bound(slot_of(MS))
    assert (found.count, found.involuntary, found.voluntary) == (4, 2, 1)


def test_totals_subtract_and_add_field_by_field() -> None:
    first = make_durations([5 * US], stolen={Theft.IRQ: 100})
    more = make_durations([7 * US], slept=[MS], pushed=[2 * MS], stolen={Theft.PREEMPTED: 50}, interrupts=3)
    both = first + more
    assert (both.count, both.sum_ns, both.interrupts) == (4, 12 * US + 3 * MS, 3)
    assert (both.voluntary, both.involuntary) == (1, 1)
    assert both.stolen == {**dict.fromkeys(Theft, 0), Theft.IRQ: 100, Theft.PREEMPTED: 50}
    assert both.stolen_ns == 150
    assert sum(both.histogram) == 4
    assert both - first == more
    assert both - more == first
