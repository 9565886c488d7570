"""Servers that differ only in who orders their queue, and whose requests end at given lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.vllm_server.server import VllmServer

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "tests" / "vllm_server" / "plugin"

# Room for 16 requests of 2,048 tokens: all slots can be filled, and little memory is touched anew.
CACHE = ("--block-size", "128", "--num-gpu-blocks-override", "256")

LEFT_OUT = "left-out"
PRIOR = "QUIETCORE_TEST_PRIOR"  # the file of that prior

POLICIES: Mapping[str, Sequence[str]] = {
    "fcfs": (),
    "priority": ("--scheduling-policy", "priority"),
    "drift": ("--scheduler-cls", "quietcore.scheduler.vllm.DriftScheduler"),
    LEFT_OUT: ("--scheduler-cls", "watched_schedulers.LeftOutScheduler"),
    "oracle": ("--scheduler-cls", "watched_schedulers.OracleScheduler"),
    "recording": ("--scheduler-cls", "watched_schedulers.RecordingScheduler"),
}


def policy_server(
    venv: Path,
    folder: Path,
    policy: str,
    lengths: Path,
    *,
    cpus: tuple[int, int] = (1, 0),
    slots: int = 16,
    stream_interval: int = 4,
    step_ms: float = 0.0,
    extra: Sequence[str] = (),
    extra_env: Mapping[str, str] | None = None,
) -> VllmServer:
    """One with ``slots``, engine and client on ``cpus``.

    ``lengths`` is the file for the logits processor, which lets no step be shorter than ``step_ms``.
    """
    return VllmServer(
        venv,
        folder,
        *cpus,
        extra_args=(
            *POLICIES[policy],
            "--logits-processors",
            "fixed_lengths:FixedLengths",
            *CACHE,
            *extra,
        ),
        max_num_seqs=slots,
        stream_interval=stream_interval,
        extra_env={
            "PYTHONPATH": f"{ROOT / 'src'}:{PLUGIN}",
            "QUIETCORE_TEST_LENGTHS": str(lengths),
            "QUIETCORE_TEST_STEP_MS": f"{step_ms:g}",
            **(extra_env or {}),
        },
    )
