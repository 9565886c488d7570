"""Disturbances for a victim on ``CPU``; the measuring process stays on ``TOOL_CPU``."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bars.bar import BarError
from tests.cpu_cgroup import controller_root, cpu_cgroup
from tests.integration.doubles import CPU, ROOT, Double, running

TOOL_CPU = min(os.sched_getaffinity(0))
NETNS, NEAR, FAR = "quietcore-test", "qc-near", "qc-far"
NEAR_IP, FAR_IP = "198.18.0.1", "198.18.0.2"  # RFC 2544: for benchmarks of network devices
PORT = 5299
_ELSEWHERE = ("taskset", "-c", str(TOOL_CPU))
_OUTSIDE = ("ip", "netns", "exec", NETNS, *_ELSEWHERE)


@contextlib.contextmanager
def on_cpu(cpu: int) -> Iterator[None]:
    """This thread, and what it starts, on one CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def stress(*options: str, cpu: int = CPU) -> Iterator[Double]:
    """stress-ng with these stressors, all on one CPU."""
    _need("stress-ng")
    with running("stress-ng", *options, "--taskset", str(cpu), "-t", "900", "-q") as started:
        time.sleep(1)
        yield started


@contextlib.contextmanager
def quota(pid: int, cpus: float) -> Iterator[Path]:
    """A process in a cgroup of its own that may use so many CPUs; yields its directory."""
    if controller_root() is None:
        raise BarError("no cgroup hierarchy with the cpu controller")
    with cpu_cgroup() as group:
        group.limit(cpus)
        group.join(pid)
        yield group.path


@contextlib.contextmanager
def softirq_load(megabits: int, cpu: int = CPU) -> Iterator[None]:
    """Small packets of iperf3, whose receive softirqs run on ``cpu``; who sends and reads them does not."""
    _need("iperf3")
    with _veth_pair(cpu), contextlib.ExitStack() as stack:
        stack.enter_context(running(*_ELSEWHERE, "iperf3", "-s", "-B", NEAR_IP))
        time.sleep(0.5)
        sender = (*_OUTSIDE, "iperf3", "-c", NEAR_IP, "-u", "-l", "200", "-b", f"{megabits}M", "-t", "900")
        stack.enter_context(running(*sender))
        time.sleep(1)
        yield


@contextlib.contextmanager
def long_softirq_load(per_second: int, cpu: int = CPU) -> Iterator[None]:
    """So many packets a second, each of which keeps ``cpu`` in its receive softirq for a long time."""
    packets = (sys.executable, ROOT / "tests" / "fixtures" / "packets.py")
    with _veth_pair(cpu), contextlib.ExitStack() as stack:
        stack.enter_context(running(*_ELSEWHERE, *packets, "receive", NEAR_IP, str(PORT)))
        stack.enter_context(running(*_OUTSIDE, *packets, "send", NEAR_IP, str(PORT), str(per_second)))
        time.sleep(1)
        yield


@contextlib.contextmanager
def disk_load(reads_per_second: int) -> Iterator[None]:
    """Uncached reads of fio, whose device interrupts come where the device sends them."""
    _need("fio")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        job = (
            "--name=reads",
            f"--directory={folder}",
            "--size=64M",
            "--rw=randread",
            "--bs=4k",
            "--direct=1",
        )
        pace = (
            "--thread",
            "--ioengine=psync",
            f"--rate_iops={reads_per_second}",
            "--time_based",
            "--runtime=900",
        )
        with running(*_ELSEWHERE, "fio", *job, *pace) as reader:
            _until_reading(reader)
            yield


def _until_reading(reader: Double) -> None:
    """fio lays its file out first."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and reader.process.poll() is None:
        with contextlib.suppress(OSError):
            read = int(Path(f"/proc/{reader.pid}/io").read_text().split("read_bytes:")[1].split()[0])
            if read > 2**20:
                return
        time.sleep(0.1)
    raise BarError("fio does not read")


@contextlib.contextmanager
def _veth_pair(cpu: int) -> Iterator[None]:
    """A network namespace behind a link; what comes from there is received on ``cpu`` (RPS)."""
    _need("ip")
    _ip("netns", "add", NETNS)
    try:
        _ip("link", "add", NEAR, "type", "veth", "peer", "name", FAR, "netns", NETNS)
        _ip("addr", "add", f"{NEAR_IP}/30", "dev", NEAR)
        _ip("link", "set", NEAR, "up")
        _ip("-n", NETNS, "addr", "add", f"{FAR_IP}/30", "dev", FAR)
        _ip("-n", NETNS, "link", "set", FAR, "up")
        Path(f"/sys/class/net/{NEAR}/queues/rx-0/rps_cpus").write_text(f"{1 << cpu:x}")
        yield
    finally:
        subprocess.run(["ip", "link", "del", NEAR], check=False, capture_output=True)
        _ip("netns", "del", NETNS)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BarError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _need(tool: str) -> None:
    if shutil.which(tool) is None:
        raise BarError(f"{tool} is not installed: run scripts/setup --test")
