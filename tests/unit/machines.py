"""Made-up /proc and /sys trees of machines that are not at hand; the layout is the kernel's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from quietcore.probes.host import Roots
from quietcore.probes.host.finding import format_list

CPU = "sys/devices/system/cpu"
NODE = "sys/devices/system/node"
PCI = "sys/bus/pci/devices"
Tree = dict[str, str]


def plant(top: Path, tree: Mapping[str, str]) -> Roots:
    """Makes the files; a text that begins with ``-> `` makes a link."""
    for name, text in tree.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("-> "):
            path.symlink_to(text.removeprefix("-> "))
        else:
            path.write_text(text)
    return Roots(top / "proc", top / "sys")


def cpu(number: int, siblings: Iterable[int], cache: Iterable[int], package: Iterable[int]) -> Tree:
    base = f"{CPU}/cpu{number}"
    return {
        f"{base}/topology/core_cpus_list": f"{format_list(siblings)}\n",
        f"{base}/topology/package_cpus_list": f"{format_list(package)}\n",
        f"{base}/cache/index0/level": "1\n",
        f"{base}/cache/index0/type": "Data\n",
        f"{base}/cache/index0/shared_cpu_list": f"{format_list(siblings)}\n",
        f"{base}/cache/index1/level": "1\n",
        f"{base}/cache/index1/type": "Instruction\n",
        f"{base}/cache/index1/shared_cpu_list": f"{format_list(siblings)}\n",
        f"{base}/cache/index3/level": "3\n",
        f"{base}/cache/index3/type": "Unified\n",
        f"{base}/cache/index3/shared_cpu_list": f"{format_list(cache)}\n",
    }


def gpu(address: str, cpus: str) -> Tree:
    base = f"{PCI}/{address}"
    return {
        f"{base}/vendor": "0x10de\n",
        f"{base}/class": "0x030200\n",
        f"{base}/local_cpulist": f"{cpus}\n",
    }


def two_sockets() -> Tree:
    """Two sockets of eight cores with SMT: CPU n and n+16 are one core; two caches a socket, a GPU each."""
    tree = {
        f"{CPU}/online": "0-31\n",
        f"{CPU}/possible": "0-63\n",
        f"{CPU}/isolated": "\n",
        f"{CPU}/nohz_full": "(null)\n",
        f"{NODE}/node0/cpulist": "0-7,16-23\n",
        f"{NODE}/node1/cpulist": "8-15,24-31\n",
        f"{PCI}/0000:00:1f.0/vendor": "0x8086\n",
        f"{PCI}/0000:00:1f.0/class": "0x060100\n",
        f"{PCI}/0000:00:1f.0/local_cpulist": "0-31\n",
    }
    for core in range(16):
        group = range(core - core % 4, core - core % 4 + 4)
        cache = [*group, *(c + 16 for c in group)]
        first = core - core % 8
        package = [*range(first, first + 8), *range(first + 16, first + 24)]
        for number in (core, core + 16):
            tree |= cpu(number, (core, core + 16), cache, package)
    return tree | gpu("0000:17:00.0", "0-7,16-23") | gpu("0000:ca:00.0", "8-15,24-31")


def with_offline() -> Tree:
    """Four CPUs of which one is offline, without caches (a guest), SMT pairs 0-1 and 2-3."""
    tree = {
        f"{CPU}/online": "0,2-3\n",
        f"{CPU}/possible": "0-3\n",
        f"{CPU}/isolated": "3\n",
        f"{CPU}/nohz_full": "3\n",
        f"{NODE}/node0/cpulist": "0-3\n",
    }
    for number in (0, 2, 3):
        pair = number - number % 2
        tree[f"{CPU}/cpu{number}/topology/thread_siblings_list"] = f"{pair}-{pair + 1}\n"
        tree[f"{CPU}/cpu{number}/topology/core_siblings_list"] = "0-3\n"
    return tree


def hybrid() -> Tree:
    """Two large cores with SMT and four small ones, as Intel has them."""
    tree = {
        f"{CPU}/online": "0-7\n",
        f"{CPU}/possible": "0-7\n",
        f"{CPU}/isolated": "\n",
        f"{NODE}/node0/cpulist": "0-7\n",
        "sys/devices/cpu_core/cpus": "0-3\n",
        "sys/devices/cpu_atom/cpus": "4-7\n",
    }
    for number in range(8):
        siblings = (number - number % 2, number - number % 2 + 1) if number < 4 else (number,)
        tree |= cpu(number, siblings, range(8), range(8))
    return tree


def big_little() -> Tree:
    """Four small and two large cores, as ARM has them."""
    tree = {f"{CPU}/online": "0-5\n", f"{CPU}/possible": "0-5\n", f"{CPU}/isolated": "\n"}
    for number in range(6):
        tree |= cpu(number, (number,), range(6), range(6))
        tree[f"{CPU}/cpu{number}/cpu_capacity"] = "446\n" if number < 4 else "1024\n"
    return tree


def interrupts(columns: str, *lines: str) -> Tree:
    """/proc/interrupts; ``lines`` are ``NUMBER COUNT... NAME``."""
    text = " " * 12 + "  ".join(columns.split()) + "\n"
    for line in lines:
        number, *rest = line.split()
        text += f"{number:>4}: " + " ".join(rest) + "\n"
    return {"proc/interrupts": text + " LOC:  1  2  Local timer interrupts\nERR:  0\n"}


def irq(number: int, name: str, affinity: str, effective: str = "") -> Tree:
    base = f"proc/irq/{number}"
    tree = {f"{base}/smp_affinity_list": f"{affinity}\n", f"{base}/spurious": "count 0\n"}
    if effective:
        tree[f"{base}/effective_affinity_list"] = f"{effective}\n"
    if name:
        tree[f"{base}/{name}/placeholder"] = ""
    return tree
