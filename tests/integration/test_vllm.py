"""A real vLLM server on the CPU, diagnosed under load."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from tests.integration.doubles import quietcore, running
from tests.vllm_server.serve import VllmServer

pytestmark = [pytest.mark.root, pytest.mark.vllm]


@pytest.mark.timeout(600)
def test_neighbour_on_the_engines_core_is_named(tmp_path: Path) -> None:
    venv = Path(os.environ["QUIETCORE_VLLM_VENV"])
    with VllmServer(venv, tmp_path, 1, 0) as server:
        load = server.load()
        with running("stress-ng", "--cpu", "1", "--taskset", "1", "-t", "60", "-q"):
            time.sleep(1)
            result = quietcore("diagnose", "--match", "EngineCore", "--duration", "6", "--json")
        load.stop()
    assert result.returncode == 1, result.stderr
    target = json.loads(result.stdout)["targets"][0]
    assert target["verdict"]["outcome"] == "interference"
    assert any("stress-ng" in culprit["name"] for culprit in target["culprits"][:2])
