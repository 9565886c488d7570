"""Where the bars of the scheduler find vLLM."""

from __future__ import annotations

import os
from pathlib import Path

from tests.bars.bar import BarError
from tests.integration.doubles import ROOT


def vllm_environment() -> Path:
    """``QUIETCORE_VLLM_VENV``, by default .venv-vllm. Raises BarError if it holds no Python."""
    venv = Path(os.environ.get("QUIETCORE_VLLM_VENV") or ROOT / ".venv-vllm")
    if not (venv / "bin" / "python").exists():
        raise BarError(f"{venv} is missing: run tests/vllm_server/install.sh {venv}")
    return venv
