"""Cgroups of the cpu controller on v1, v2 and hybrid hosts, as made-up trees, and on the host of the test."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from quietcore.probes import cgroups
from quietcore.probes.cgroups import CpuCgroups, Quota, ThrottleStats
from quietcore.probes.errors import MeasureError, TargetGoneError

ID = "3f4a0c55d2b1" + "9" * 52
OTHER_ID = "3f4b" + "7" * 60
POD = "1e1f6c5c-0a0a-4c4c-8d8d-0123456789ab"
POD_SLICE = f"kubepods-burstable-pod{POD.replace('-', '_')}.slice"


class Host:
    """A made-up /proc and /sys/fs/cgroup."""

    def __init__(self, tmp: Path) -> None:
        self.proc, self.fs = tmp / "proc", tmp / "my cgroup"  # mountinfo escapes the space
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "self/mountinfo").touch()
        self.mount("", "tmpfs", "tmpfs")

    def mount(self, name: str, kind: str, options: str = "rw", root: str = "/") -> Path:
        point = self.fs / name
        point.mkdir(parents=True, exist_ok=True)
        escaped = str(point).replace(" ", r"\040")
        with (self.proc / "self/mountinfo").open("a") as f:
            f.write(f"31 23 0:28 {root} {escaped} rw,relatime shared:9 - {kind} cgroup {options}\n")
        if kind.startswith("cgroup"):
            (point / "cgroup.procs").touch()
        return point

    def process(self, pid: int, *lines: str) -> None:
        (self.proc / str(pid)).mkdir()
        (self.proc / str(pid) / "cgroup").write_text("".join(f"{line}\n" for line in lines))


def add(directory: Path, *pids: int, **files: str) -> Path:
    """A cgroup, and those above it."""
    directory.mkdir(parents=True, exist_ok=True)
    for level in (directory, *directory.parents):
        if (level / "cgroup.procs").exists():
            break
        (level / "cgroup.procs").touch()
    (directory / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
    for name, text in files.items():
        (directory / name.replace("_", ".", 1)).write_text(text)
    return directory


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_v1_takes_the_cpu_controllers_hierarchy(host: Host) -> None:
    host.mount("memory", "cgroup", "rw,memory")
    host.mount("cpuset", "cgroup", "rw,cpuset")
    point = host.mount("cpu,cpuacct", "cgroup", "rw,cpu,cpuacct")
    host.process(7, "9:memory:/elsewhere", "4:cpuset:/", f"3:cpu,cpuacct:/docker/{ID}", "0::/")
    directory = add(point / "docker" / ID, 7)
    found = CpuCgroups.find(host.proc)
    assert (found.version, found.mount, found.root) == (1, point, "/")
    assert found.path(7) == f"/docker/{ID}"
    assert found.directory(7) == found.cpu_directory(7) == directory


def test_hybrid_takes_v1(host: Host) -> None:
    host.mount("unified", "cgroup2")
    point = host.mount("cpu", "cgroup", "rw,cpu")
    add(point / "a", 7)
    host.process(7, "1:cpu:/a", "0::/system.slice/b.service")
    found = CpuCgroups.find(host.proc)
    assert (found.version, found.cpu_directory(7)) == (1, point / "a")


def test_hybrid_with_the_cpu_controller_in_v2(host: Host) -> None:
    point = host.mount("unified", "cgroup2")
    host.mount("net_cls", "cgroup", "rw,net_cls")
    add(point / "b", 7, cpu_weight="100")
    host.process(7, "1:net_cls:/a", "0::/b")
    found = CpuCgroups.find(host.proc)
    assert (found.version, found.cpu_directory(7)) == (2, point / "b")


def test_v2_charges_the_nearest_cgroup_with_the_controller(host: Host) -> None:
    point = host.mount("", "cgroup2")
    add(point / "system.slice", cpu_weight="100")
    service = add(point / "system.slice/a.service", 7)
    bare = add(point / "user.slice", 8)
    host.process(7, "0::/system.slice/a.service")
    host.process(8, "0::/user.slice (deleted)")
    found = CpuCgroups.find(host.proc)
    assert (found.version, found.mount) == (2, point)
    assert found.path(8) == "/user.slice"
    assert (found.directory(7), found.cpu_directory(7)) == (service, point / "system.slice")
    assert (found.directory(8), found.cpu_directory(8)) == (bare, point)


def test_a_part_of_the_hierarchy_is_mounted(host: Host) -> None:
    """A container without a cgroup namespace."""
    point = host.mount("cpu", "cgroup", "rw,cpu", root=f"/docker/{ID}")
    host.process(7, f"1:cpu:/docker/{ID}/sub")
    host.process(8, "1:cpu:/other")
    add(point / "sub", 7)
    found = CpuCgroups.find(host.proc)
    assert found.directory(7) == point / "sub"
    with pytest.raises(MeasureError, match=r"/other of process 8 is not visible .*mount the host's"):
        found.directory(8)


def test_the_hosts_hierarchy_seen_from_a_cgroup_namespace(host: Host) -> None:
    """Names that are above our namespace are shown as `..` only."""
    host.mount("own", "cgroup2")
    point = host.mount("host", "cgroup2", root="/../..")
    ours = add(point / "kubepods/agent/inner", 9)
    theirs = add(point / "kubepods/server", 7)
    top = add(point / "system.slice", 8)
    host.process(7, "0::/../server")
    host.process(8, "0::/../../system.slice")
    host.process(9, "0::/inner")
    found = CpuCgroups.find(host.proc)
    assert (found.mount, found.root) == (point, "/../..")
    # without a name, by who is in it
    assert [found.directory(pid) for pid in (7, 8, 9)] == [theirs, top, ours]


def test_what_is_not_there(host: Host) -> None:
    with pytest.raises(MeasureError, match="no cgroup hierarchy with the cpu controller is mounted"):
        CpuCgroups.find(host.proc)
    host.mount("cpu", "cgroup", "rw,cpu")
    found = CpuCgroups.find(host.proc)
    with pytest.raises(TargetGoneError, match="the cgroup of process 7 cannot be read: No such file"):
        found.directory(7)
    host.process(8, "1:memory:/")
    with pytest.raises(MeasureError, match="process 8 has no cgroup in the cpu"):
        found.directory(8)
    with pytest.raises(MeasureError, match="no cgroup at /nowhere"):
        cgroups.cgroup_id("/nowhere")


def test_ids_are_looked_up_again_only_after_a_while(host: Host) -> None:
    point = host.mount("cpu", "cgroup", "rw,cpu")
    now, walks = 0, 0

    class Counting(CpuCgroups):
        def directories(self) -> Iterator[Path]:
            nonlocal walks
            walks += 1
            return CpuCgroups.directories(self)

    found = Counting(1, point, "/", host.proc, clock=lambda: now)
    first = add(point / "a/.b")
    number = cgroups.cgroup_id(first)
    assert found.path_of(number) == "/a/.b"
    assert found.path_of(cgroups.cgroup_id(point)) == "/"
    assert found.directory_by_id(number) == first
    later = add(point / "later")
    now = 4_900_000_000
    assert [found.path_of(cgroups.cgroup_id(later)) for _ in range(3)] == [None] * 3
    assert walks == 1
    now = 5_000_000_000
    assert found.path_of(cgroups.cgroup_id(later)) == "/later"
    assert walks == 2
    # a blame may name a cgroup that is gone
    for path in first.iterdir():
        path.unlink()
    first.rmdir()
    now = 11_000_000_000
    assert found.path_of(-1) is None
    assert found.path_of(number) == "/a/.b"
    assert found.directory_by_id(number) is None


def test_v1_quota_and_throttling(host: Host) -> None:
    point = host.mount("cpu", "cgroup", "rw,cpu")
    pod = add(point / "pod", cpu_cfs_quota_us="150000\n", cpu_cfs_period_us="100000\n")
    inner = add(pod / "c1", cpu_cfs_quota_us="-1\n", cpu_cfs_period_us="100000\n")
    tight = add(pod / "c2", cpu_cfs_quota_us="200000\n", cpu_cfs_period_us="400000\n")
    stat = "nr_periods 10\nnr_throttled 3\nthrottled_time 123456789\nnr_bursts 0\nburst_time 0\n"
    (tight / "cpu.stat").write_text(stat)
    assert cgroups.own_quota(inner) is None
    assert cgroups.quota(inner) == Quota(150_000, 100_000, pod)
    assert cgroups.quota(tight) == Quota(200_000, 400_000, tight)
    assert Quota(200_000, 400_000, tight).cpus == 0.5
    assert cgroups.quota(point) is None
    assert cgroups.throttle_stats(tight) == ThrottleStats(10, 3, 123_456_789)


def test_v2_quota_and_throttling(host: Host) -> None:
    point = host.mount("", "cgroup2")
    outer = add(point / "outer", cpu_max="50000 100000\n")
    inner = add(outer / "inner", cpu_max="200000 100000\n")
    free = add(point / "free", cpu_max="max 100000\n", cpu_stat="usage_usec 5\nuser_usec 5\n")
    (inner / "cpu.stat").write_text("usage_usec 9\nnr_periods 10\nnr_throttled 3\nthrottled_usec 4321\n")
    assert cgroups.quota(inner) == Quota(50_000, 100_000, outer)
    assert cgroups.own_quota(inner) == Quota(200_000, 100_000, inner)
    assert cgroups.quota(free) is None
    assert cgroups.throttle_stats(str(inner)) == ThrottleStats(10, 3, 4_321_000)
    assert cgroups.throttle_stats(free) is None
    assert cgroups.throttle_stats(point / "gone") is None


def test_processes(host: Host) -> None:
    point = host.mount("cpu", "cgroup", "rw,cpu")
    top = add(point / "top", 5, 3, 0)  # 0: outside of our pid namespace
    add(top / "a/b", 4, 5)
    assert cgroups.processes(top) == [3, 4, 5]
    assert cgroups.processes(str(top), recursive=False) == [3, 5]
    assert cgroups.processes(point / "gone") == []


def resolved(host: Host, text: str) -> str:
    found = CpuCgroups.find(host.proc)
    return str(found.resolve(text).relative_to(found.mount))


def test_resolves_what_the_user_names(host: Host) -> None:
    memory = host.mount("memory", "cgroup", "rw,memory")
    point = host.mount("cpu,cpuacct", "cgroup", "rw,cpu,cpuacct")
    (host.fs / "cpu").symlink_to("cpu,cpuacct")
    add(point / "docker" / ID / "nested" / ID)
    add(point / "docker" / OTHER_ID)
    add(point / "system.slice/nginx.service")
    add(point / f"machine.slice/libpod-{'5' * 64}.scope")
    add(point / f"machine.slice/libpod-conmon-{'5' * 64}.scope")
    for text in (
        f"{point}/docker/{ID}",
        f"{host.fs}/cpu/docker/{ID}",
        f"{memory}/docker/{ID}/",
        f"/docker/{ID}",
        f"docker/{ID}",
        ID,
        "3f4a",
        f"docker://{ID}",
    ):
        assert resolved(host, text) == f"docker/{ID}", text
    assert resolved(host, "nginx.service") == "system.slice/nginx.service"
    assert resolved(host, "555555555555") == f"machine.slice/libpod-{'5' * 64}.scope"
    assert resolved(host, "/") == "."


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("3f4", "looked for .*/cpu/3f4, and for a unit or container of that name below .*; /proc/PID/cgroup"),
        ("/docker/nope", "no cgroup '/docker/nope': looked for .*/cpu/docker/nope;"),
        ("../memory", "looked for"),
        ("", "no cgroup ''"),
        ("c0de", "'c0de' may be any of 2 cgroups: .*; give more of the container's id"),
    ],
)
def test_says_what_it_looked_for(host: Host, text: str, says: str) -> None:
    host.mount("memory", "cgroup", "rw,memory")
    point = host.mount("cpu", "cgroup", "rw,cpu")
    add(point / "docker" / ID)
    for rest in "12":
        add(point / "docker" / ("c0de" + rest * 60))
    with pytest.raises(MeasureError, match=says):
        CpuCgroups.find(host.proc).resolve(text)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (f"/docker/{ID}", "docker 3f4a0c55d2b1"),
        (f"/system.slice/docker-{ID}.scope", "docker 3f4a0c55d2b1"),
        (f"/sys/fs/cgroup/cpu,cpuacct/docker/{ID}", "docker 3f4a0c55d2b1"),
        (f"/machine.slice/libpod-{ID}.scope/container", "podman 3f4a0c55d2b1"),
        (f"/user.slice/nerdctl-{ID}.scope", "nerdctl 3f4a0c55d2b1"),
        (f"/default/{ID}", "container 3f4a0c55d2b1"),
        (f"/kubepods/burstable/pod{POD}/{ID}", f"pod {POD}/3f4a0c55d2b1"),
        (f"/kubepods.slice/{POD_SLICE}/cri-containerd-{ID}.scope", f"pod {POD}/3f4a0c55d2b1"),
        (f"/kubepods.slice/{POD_SLICE}/crio-{ID}.scope", f"pod {POD}/3f4a0c55d2b1"),
        (f"/kubepods.slice/{POD_SLICE}", f"pod {POD}"),
        (f"/system.slice/containerd.service/{POD_SLICE}:cri-containerd:{ID}", f"pod {POD}/3f4a0c55d2b1"),
        (f"/kubepods/pod{'a' * 32}/{ID}", f"pod {'a' * 32}/3f4a0c55d2b1"),
        (f"/docker/{OTHER_ID}/kubelet/kubepods/pod{POD}/{ID}", f"pod {POD}/3f4a0c55d2b1"),
        (f"/machine.slice/libpod-conmon-{ID}.scope", "libpod-conmon-3f4a0c55d2b1.scope"),
        ("/system.slice/nginx.service", "nginx.service"),
        ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service"),
        (r"/user.slice/user-0.slice/user@0.service/app.slice/my\x2dapp.service", "my-app.service"),
        ("/user.slice/user-0.slice/session-3.scope", "session-3.scope"),
        ("/lxc.payload.web/init", "lxc web"),
        ("/slurm/uid_0/job_42/step_0/task_1", "slurm job 42"),
        ("/system.slice/slurmstepd.scope/job_42/step_0", "slurm job 42"),
        ("/mine/yours", "/mine/yours"),
        ("/sys/fs/cgroup", "/"),
        ("/", "/"),
        ("", "/"),
    ],
)
def test_short_names(path: str, name: str) -> None:
    assert cgroups.short_name(path) == name


def test_on_this_host() -> None:
    directory = cgroups.cpu_cgroup(os.getpid())
    if directory is None:
        pytest.skip("needs a mounted cgroup hierarchy with the cpu controller")
    path = cgroups.path_of(cgroups.cgroup_id(directory))
    assert path is not None
    assert cgroups.resolve_cgroup_argument(path) == directory
    assert os.getpid() in cgroups.processes(directory)
    assert cgroups.cpu_cgroup(4_194_305) is None
    assert cgroups.path_of(12_345_678_901) is None


@pytest.mark.root
def test_quota_of_this_kernel() -> None:
    hierarchy = CpuCgroups.find()
    directory = hierarchy.mount / f"quietcore-quota-{os.getpid()}"
    directory.mkdir()
    try:
        if (directory / "cpu.max").exists():
            (directory / "cpu.max").write_text("30000 60000")
        elif (directory / "cpu.cfs_quota_us").exists():
            (directory / "cpu.cfs_period_us").write_text("60000")
            (directory / "cpu.cfs_quota_us").write_text("30000")
        else:
            pytest.skip("needs the cpu controller enabled below the root")
        assert cgroups.quota(directory) == Quota(30_000, 60_000, directory)
        assert cgroups.throttle_stats(directory) == ThrottleStats(0, 0, 0)
        assert hierarchy.path_of(cgroups.cgroup_id(directory)) == f"/{directory.name}"
    finally:
        directory.rmdir()


@pytest.mark.root
def test_processes_of_a_threaded_cgroup() -> None:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    top = next((Path(point) for _, point, kind, *_ in mounts if kind == "cgroup2"), None)
    if top is None:
        pytest.skip("needs a cgroup v2 mount")
    domain = top / f"quietcore-threads-{os.getpid()}"
    threaded = domain / "threaded"
    child = subprocess.Popen(["sleep", "60"])
    try:
        threaded.mkdir(parents=True)
        (threaded / "cgroup.type").write_text("threaded")
        (domain / "cgroup.procs").write_text(str(child.pid))
        (threaded / "cgroup.threads").write_text(str(child.pid))
        with pytest.raises(OSError, match="not supported"):
            (threaded / "cgroup.procs").read_text()
        assert cgroups.processes(threaded) == [child.pid]
        assert cgroups.processes(domain) == [child.pid]
    finally:
        child.kill()
        child.wait()
        threaded.rmdir()
        domain.rmdir()
