"""A real vLLM server on the CPU, diagnosed under load."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.bars import vllm
from tests.integration.doubles import quietcore, running
from tests.vllm_server.serve import VllmServer

pytestmark = [pytest.mark.root, pytest.mark.vllm, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    venv = Path(os.environ["QUIETCORE_VLLM_VENV"])
    with VllmServer(venv, tmp_path_factory.mktemp("vllm"), engine_cpu=1, client_cpu=0) as started:
        load = started.load()
        yield started
        load.stop()


def diagnosed(expected_code: int) -> dict[str, Any]:
    result = quietcore("diagnose", "--match", "EngineCore", "--duration", "6", "--json")
    assert result.stdout, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)["targets"][0]
    assert result.returncode == expected_code, (found["verdict"], found["shares"], found["culprits"][:4])
    return found


def run_delay(pid: int) -> int:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1])


def test_undisturbed_engine_is_healthy(server: VllmServer) -> None:
    assert server.engine_pid
    assert diagnosed(0)["verdict"]["outcome"] == "not_cpu"


def test_neighbour_on_the_engines_core_is_named(server: VllmServer) -> None:
    before = run_delay(server.engine_pid)
    with running("stress-ng", "--cpu", "1", "--taskset", str(server.engine_cpu), "-t", "60", "-q"):
        target = diagnosed(1)
    assert run_delay(server.engine_pid) > before
    assert target["verdict"]["outcome"] == "interference"
    assert "stress-ng" in target["culprits"][0]["name"]


def test_quota_on_the_engines_cgroup_is_named(server: VllmServer) -> None:
    if server.engine_group is None:
        pytest.skip("needs a cgroup hierarchy with the cpu controller")
    server.engine_group.limit(0.5)
    try:
        target = diagnosed(1)
    finally:
        server.engine_group.limit(None)
    assert target["culprits"][0]["kind"] == "quota"
    assert server.engine_group.path.name in target["culprits"][0]["name"]


@pytest.mark.parametrize("case", [vllm.NEIGHBOUR, vllm.SHORT, vllm.LONG])
def test_shares_agree_with_the_kernel(server: VllmServer, case: str) -> None:
    """As the bar has it: schedstat, /proc/softirqs and /proc/stat, and who is named."""
    row = vllm.one_run(0, case, vllm.disturbances(server)[case], server, 6)
    assert not row.faults, row
