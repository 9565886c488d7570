"""CPUs and interrupts as they are read from recorded trees of big machines."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.machines import CPU, big_little, hybrid, interrupts, irq, plant, two_sockets, with_offline

from quietcore.probes.errors import MeasureError
from quietcore.probes.host import Roots
from quietcore.probes.topology import (
    CpuTimes,
    busy_shares,
    irq_name,
    irq_rates,
    read_cpu_times,
    read_interrupts,
    read_topology,
)


def test_two_sockets(tmp_path: Path) -> None:
    found = read_topology(plant(tmp_path, two_sockets()))
    assert found.online == set(range(32))
    assert found.possible == set(range(64))
    assert not found.isolated
    assert not found.nohz_full
    nine = found.cpus[9]
    assert nine.siblings == {9, 25}
    assert nine.cache == {8, 9, 10, 11, 24, 25, 26, 27}
    assert (nine.node, nine.small) == (1, False)
    assert found.nodes[0] == {*range(8), *range(16, 24)}
    assert set(found.gpus) == {"0000:17:00.0", "0000:ca:00.0"}
    assert found.gpus["0000:ca:00.0"] == {*range(8, 16), *range(24, 32)}
    assert found.near_gpus == found.online


def test_one_gpu_makes_its_cpus_near(tmp_path: Path) -> None:
    tree = {name: text for name, text in two_sockets().items() if "0000:ca" not in name}
    assert read_topology(plant(tmp_path, tree)).near_gpus == {*range(8), *range(16, 24)}


def test_an_offline_cpu_is_nobodys_sibling(tmp_path: Path) -> None:
    found = read_topology(plant(tmp_path, with_offline()))
    assert set(found.cpus) == {0, 2, 3}
    assert found.possible == {0, 1, 2, 3}
    assert found.cpus[0].siblings == {0}
    assert found.cpus[2].siblings == {2, 3}
    assert found.cpus[2].cache == {0, 2, 3}  # of the package, without caches
    assert found.isolated == found.nohz_full == {3}
    assert found.near_gpus == found.online


def test_small_cores(tmp_path: Path) -> None:
    intel = read_topology(plant(tmp_path / "intel", hybrid()))
    assert {cpu.number for cpu in intel.cpus.values() if cpu.small} == {4, 5, 6, 7}
    arm = read_topology(plant(tmp_path / "arm", big_little()))
    assert {cpu.number for cpu in arm.cpus.values() if cpu.small} == {0, 1, 2, 3}
    assert arm.cpus[0].node == -1


def test_without_topology_every_cpu_is_a_core_of_one_machine(tmp_path: Path) -> None:
    found = read_topology(plant(tmp_path, {f"{CPU}/online": "0-1\n"}))
    assert found.cpus[1].siblings == {1}
    assert found.cpus[1].cache == {0, 1}
    assert found.possible == {0, 1}


def test_no_sysfs_is_told(tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match=r"cannot be listed.*; mount sysfs"):
        read_topology(Roots(tmp_path, tmp_path))


def test_interrupts(tmp_path: Path) -> None:
    tree = interrupts(
        "CPU0 CPU2 CPU3",
        "36 10 0 5 PCI-MSIX-0000:17:00.0 0-edge nvme0q1",
        "37 1 2 3 PCI-MSIX-0000:31:00.0 1-edge eth0-rx-0",
        "38 0 0 0 PCI-MSIX-0000:31:00.0 2-edge",
        "39 4 4 4 GICv3 27 Level arch_timer",
    )
    tree |= irq(36, "nvme0q1", "0-3", "2") | irq(37, "eth0-rx-0", "0,3") | irq(38, "", "0-3")
    roots = plant(tmp_path, tree)
    (tmp_path / "proc/irq/36/smp_affinity_list").chmod(0o444)
    found = read_interrupts(roots)
    assert set(found) == {36, 37, 38}  # a per-CPU interrupt has no affinity
    managed, movable, idle = found[36], found[37], found[38]
    assert (managed.name, managed.managed, managed.effective) == ("nvme0q1", True, frozenset({2}))
    assert managed.counts == {0: 10, 2: 0, 3: 5}
    assert (movable.managed, movable.affinity, movable.effective) == (
        False,
        frozenset({0, 3}),
        frozenset({0, 3}),
    )
    assert idle.name == ""
    assert irq_name(37, roots) == "eth0-rx-0"
    assert irq_name(99, roots) == ""


def test_rates_leave_out_numbers_that_changed_hands(tmp_path: Path) -> None:
    first = read_interrupts(
        plant(tmp_path / "1", interrupts("CPU0", "5 10 a", "6 0 b") | irq(5, "a", "0") | irq(6, "b", "0"))
    )
    last = read_interrupts(
        plant(tmp_path / "2", interrupts("CPU0", "5 210 a", "6 9 c") | irq(5, "a", "0") | irq(6, "c", "0"))
    )
    assert irq_rates(first, last, 2.0) == {5: 100.0}


def test_busy_shares(tmp_path: Path) -> None:
    line = "cpu{} {} 0 {} {} {} 0 0 {} 50 0\n"
    text = "cpu  9 9 9 9 9 9 9 9 9 9\n" + line.format(0, 10, 10, 70, 10, 0) + line.format(3, 0, 0, 5, 0, 5)
    first = read_cpu_times(plant(tmp_path, {"proc/stat": text + "intr 1 2 3\n"}))
    assert first == {0: CpuTimes(100, 20), 3: CpuTimes(10, 5)}
    last = {0: CpuTimes(200, 70), 3: CpuTimes(10, 5), 4: CpuTimes(8, 8)}
    assert busy_shares(first, last) == {0: 0.5}


def test_idle_time_that_goes_backwards_is_no_negative_share() -> None:
    assert busy_shares({0: CpuTimes(100, 50)}, {0: CpuTimes(110, 45)}) == {0: 0.0}


def test_this_machine() -> None:
    found = read_topology()
    assert found.online <= found.possible
    for cpu in found.cpus.values():
        assert cpu.number in cpu.siblings <= found.online
        assert cpu.number in cpu.cache
    assert set(read_cpu_times()) == found.online
    assert all(irq.affinity for irq in read_interrupts().values())
