"""A logits processor that ends each request at a length that only it knows.

    --logits-processors fixed_lengths:FixedLengths

A request says by ``vllm_xargs`` {"run", "request"} which it is; its length is in the file that
QUIETCORE_TEST_LENGTHS names. Neither the client nor the scheduler is told. Tests and bars start servers with
this folder on PYTHONPATH.

With QUIETCORE_TEST_STEP_MS in the environment no step is shorter than that, as if a device set the pace: what
else runs on the machine then no longer decides how much the engine can serve.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import torch
from known_lengths import KnownLengths
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

STEP_MS = "QUIETCORE_TEST_STEP_MS"


class FixedLengths(LogitsProcessor):  # type: ignore[misc]
    """Forbids the end-of-sequence token until it is due, and then everything else."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        eos = vllm_config.model_config.hf_config.eos_token_id
        self._eos: int = eos[0] if isinstance(eos, list) else eos
        self._known = KnownLengths()
        self._rows: dict[int, tuple[int, Sequence[int]]] = {}
        self._step_s = float(os.environ.get(STEP_MS, "0")) / 1000
        self._next = 0.0

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self._rows, batch_update, self._row)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Called once a step, by vLLM's sampler."""
        self._pace()
        due = [row for row, (length, tokens) in self._rows.items() if len(tokens) >= length - 1]
        if self._rows:
            logits[list(self._rows), self._eos] = -torch.inf
        if due:
            logits[due] = -torch.inf
            logits[due, self._eos] = 0.0
        return logits

    def _pace(self) -> None:
        now = time.perf_counter()
        if self._next > now:
            time.sleep(self._next - now)
        self._next = max(now, self._next) + self._step_s

    def _row(self, params: Any, prompt: Any, tokens: list[int]) -> tuple[int, Sequence[int]] | None:
        length = self._known.of(params.extra_args)
        return (length, tokens) if length else None
