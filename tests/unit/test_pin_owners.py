"""Who else places threads: each owner is found in a recorded tree, and in no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.unit.machines import Tree, plant

from quietcore.agent.pin.owners import EVERYTHING, INTERRUPTS, PLACING, WEIGHING, Owner, find_owners

PID, PARENT = 40, 30
POD = "/kubepods.slice/kubepods-pod0a1b.slice/cri-containerd-abc.scope"
UNIT = "/system.slice/vllm@7.service"
STATE = "var/lib/kubelet/cpu_manager_state"
ENTRIES = {"uid-1": {"server": "4-7"}, "uid-2": {"a": "8", "b": "9"}}


def process(pid: int = PID, cgroup: str = "/", parent: int = PARENT, **more: str) -> Tree:
    base = f"proc/{pid}"
    return {
        f"{base}/cgroup": f"0::{cgroup}\n",
        f"{base}/stat": f"{pid} (vllm (1)) S {parent} 1 1\n",
        f"{base}/status": "Name:\tvllm\nCpus_allowed_list:\t2-3\n",
        **{f"{base}/{name}": text for name, text in more.items()},
    }


def mounted(top: Path, version: int = 2) -> Tree:
    where = f"{top}/sys/fs/cgroup"
    kind = "cgroup2 cgroup2 rw" if version == 2 else "cgroup cgroup rw,cpuset"
    return {"proc/self/mountinfo": f"30 1 0:2 / {where} rw - {kind}\n", "sys/fs/cgroup/cgroup.procs": ""}


def found(top: Path, *trees: Tree) -> list[Owner]:
    tree: Tree = {}
    for part in trees:
        tree |= part
    plant(top, tree)
    return find_owners([PID], top)


def only(owners: list[Owner]) -> Owner:
    (owner,) = owners
    return owner


def state(policy: str, entries: object) -> Tree:
    return {STATE: json.dumps({"policyName": policy, "defaultCpuSet": "0-3", "entries": entries})}


def test_nobody(tmp_path: Path) -> None:
    tree = process(cmdline="python\0-m\0vllm\0--no-numa-bind\0", environ="SGLANG_SET_CPU_AFFINITY=0\0")
    quiet = {
        "sys/kernel/sched_ext/state": "disabled\n",
        "sys/devices/system/cpu/isolated": "\n",
        "etc/tuned/active_profile": "throughput-performance\n",
    }
    assert found(tmp_path, tree, quiet, mounted(tmp_path)) == []


def test_a_host_that_tells_nothing(tmp_path: Path) -> None:
    assert find_owners([PID], tmp_path) == []


def test_kubelets_static_policy(tmp_path: Path) -> None:
    owner = only(found(tmp_path, process(cgroup=POD), state("static", ENTRIES)))
    assert (owner.name, owner.levers, owner.cpus) == ("kubelet", PLACING, frozenset(range(4, 10)))
    assert "static CPU manager places process 40" in owner.text


def test_kubelet_in_another_folder(tmp_path: Path) -> None:
    kubelet = {"proc/5/comm": "kubelet\n", "proc/5/cmdline": "kubelet\0--root-dir=/data/kubelet\0"}
    there = {"data/kubelet/cpu_manager_state": json.dumps({"policyName": "static"})}
    assert only(found(tmp_path, process(cgroup=POD), kubelet, there)).levers == PLACING


def test_kubelet_told_to_by_its_command_line(tmp_path: Path) -> None:
    kubelet = {"proc/5/comm": "kubelet\n", "proc/5/cmdline": "kubelet\0--cpu-manager-policy\0static\0"}
    assert only(found(tmp_path, process(cgroup=POD), kubelet)).levers == PLACING


@pytest.mark.parametrize("text", ["{", "[]", '{"policyName": "static", "entries": {"a": "4-7"}}'])
def test_a_state_that_is_not_understood_is_respected(tmp_path: Path, text: str) -> None:
    assert only(found(tmp_path, process(cgroup=POD), {STATE: text})).levers == PLACING


def test_a_pods_cpuset_is_kubelets_under_any_policy(tmp_path: Path) -> None:
    owner = only(found(tmp_path, process(cgroup=POD), state("none", {})))
    assert owner.levers == {"cpuset"}


def test_exclusive_cpus_of_pods_are_not_for_host_processes(tmp_path: Path) -> None:
    owner = only(found(tmp_path, process(), state("static", ENTRIES)))
    assert (owner.levers, owner.cpus) == (frozenset[str](), frozenset(range(4, 10)))


@pytest.mark.parametrize("setting", ["AllowedCPUs", "CPUAffinity"])
@pytest.mark.parametrize(
    "path",
    [
        "etc/systemd/system/vllm@7.service",
        "usr/lib/systemd/system/vllm@.service",
        "etc/systemd/system/vllm@7.service.d/cpus.conf",
        "run/systemd/system.control/system.slice.d/50-AllowedCPUs.conf",
    ],
)
def test_systemd(tmp_path: Path, path: str, setting: str) -> None:
    unit = {path: f"[Service]\n{setting} = 2-3 5\n"}
    owner = only(found(tmp_path, process(cgroup=UNIT), unit))
    assert (owner.name, owner.levers) == ("systemd", PLACING)
    assert f"{setting}=2-3 5" in owner.text


def test_systemd_in_a_hybrid_hierarchy(tmp_path: Path) -> None:
    tree = process()
    tree[f"proc/{PID}/cgroup"] = f"9:name=systemd:{UNIT}\n3:cpuset:/\n0::/\n"
    unit = {"etc/systemd/system/vllm@7.service": "CPUAffinity=1\n"}
    assert only(found(tmp_path, tree, unit)).name == "systemd"


def test_a_drop_in_may_take_it_back(tmp_path: Path) -> None:
    unit = {
        "etc/systemd/system/vllm@7.service": "[Service]\nCPUAffinity=1\n#AllowedCPUs=3\n",
        "etc/systemd/system/vllm@7.service.d/free.conf": "[Service]\nCPUAffinity=\n",
    }
    assert found(tmp_path, process(cgroup=UNIT), unit) == []


@pytest.mark.parametrize(
    "profile", ["cpu-partitioning", "realtime-virtual-host", "powersave cpu-partitioning"]
)
def test_tuned(tmp_path: Path, profile: str) -> None:
    name = "realtime" if "realtime" in profile else "cpu-partitioning"
    tree = {
        "etc/tuned/active_profile": f"{profile}\n",
        f"etc/tuned/{name}-variables.conf": "# isolated_cores=9\nisolated_cores=2-5\n",
    }
    owner = only(found(tmp_path, process(), tree))
    assert (owner.name, owner.levers, owner.cpus) == ("tuned", EVERYTHING, frozenset({2, 3, 4, 5}))


def test_tuned_by_inclusion(tmp_path: Path) -> None:
    tree = {
        "etc/tuned/active_profile": "ours\n",
        "etc/tuned/ours/tuned.conf": "[main]\ninclude=throughput-performance, theirs\n",
        "usr/lib/tuned/theirs/tuned.conf": "[main]\ninclude=cpu-partitioning\n",
        "etc/tuned/cpu-partitioning-variables.conf": "isolated_cores=${f:calc_isolated_cores:1}\n",
    }
    owner = only(found(tmp_path, process(), tree))
    assert (owner.levers, owner.cpus) == (EVERYTHING, frozenset())


def test_tuned_that_includes_itself(tmp_path: Path) -> None:
    tree = {"etc/tuned/active_profile": "a\n", "etc/tuned/a/tuned.conf": "include=a\n"}
    assert found(tmp_path, process(), tree) == []


@pytest.mark.parametrize("kind", ["root", "isolated"])
def test_a_partition_above(tmp_path: Path, kind: str) -> None:
    tree = {
        "sys/fs/cgroup/a/cgroup.procs": "",
        "sys/fs/cgroup/a/cpuset.cpus.partition": f"{kind}\n",
        "sys/fs/cgroup/a/b/cgroup.procs": "",
        "sys/fs/cgroup/a/b/cpuset.cpus.partition": "member\n",
    }
    owner = only(found(tmp_path, process(cgroup="/a/b"), tree, mounted(tmp_path)))
    assert (owner.name, owner.levers) == ("partition", PLACING)


@pytest.mark.parametrize("kind", ["member", "isolated invalid (Cpu list in cpuset.cpus not exclusive)"])
def test_no_partition(tmp_path: Path, kind: str) -> None:
    tree = {"sys/fs/cgroup/a/cgroup.procs": "", "sys/fs/cgroup/a/cpuset.cpus.partition": f"{kind}\n"}
    assert found(tmp_path, process(cgroup="/a"), tree, mounted(tmp_path)) == []


def test_an_exclusive_cpuset_of_v1(tmp_path: Path) -> None:
    tree = process()
    tree[f"proc/{PID}/cgroup"] = "3:cpuset:/a\n0::/\n"
    tree |= {"sys/fs/cgroup/a/cgroup.procs": "", "sys/fs/cgroup/a/cpuset.cpu_exclusive": "1\n"}
    assert only(found(tmp_path, tree, mounted(tmp_path, 1))).name == "partition"


def test_isolated_cpus_by_choice(tmp_path: Path) -> None:
    isolated = "sys/devices/system/cpu/isolated"
    owner = only(found(tmp_path / "1", process(), {isolated: "2-7\n"}))
    assert (owner.name, owner.levers) == ("isolcpus", PLACING)
    # it may run on others as well: nobody chose
    assert found(tmp_path / "2", process(), {isolated: "3\n"}) == []


@pytest.mark.parametrize("state", ["enabled", "enabling"])
def test_sched_ext(tmp_path: Path, state: str) -> None:
    tree = {"sys/kernel/sched_ext/state": f"{state}\n", "sys/kernel/sched_ext/root/ops": "scx_lavd\n"}
    owner = only(found(tmp_path, process(), tree))
    assert owner.levers == PLACING | WEIGHING
    assert not owner.levers & INTERRUPTS
    assert "scx_lavd" in owner.text


@pytest.mark.parametrize(
    "flags",
    [
        "--numa-bind",
        "--numa_bind",
        "--numa-bind-nodes\0000,1",
        "--numa-bind-cpus=0-3",
        "--numa-binding=node",
        "--numa_binding=node",
    ],
)
@pytest.mark.parametrize("of", [PID, PARENT])
def test_an_engine_that_binds_itself(tmp_path: Path, flags: str, of: int) -> None:
    trees = process() | process(PARENT, parent=1)
    trees[f"proc/{of}/cmdline"] = f"python\0-m\0vllm\0{flags}\0"
    owner = only(found(tmp_path, trees))
    assert (owner.name, owner.levers) == ("engine", PLACING)
    assert f"process {of} was started with --numa" in owner.text


def test_sglang(tmp_path: Path) -> None:
    tree = process(environ="HOME=/\0SGLANG_SET_CPU_AFFINITY=1\0")
    assert "SGLANG_SET_CPU_AFFINITY" in only(found(tmp_path, tree)).text


def test_an_owner_in_words() -> None:
    assert str(Owner("x", PLACING, "it is theirs", "ask them")) == "it is theirs; ask them"
    assert str(Owner("x", PLACING, "it is theirs", "")) == "it is theirs"
