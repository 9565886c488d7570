"""The file of lengths, as what may know them reads it: the logits processor and the oracle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LENGTHS = "QUIETCORE_TEST_LENGTHS"


class KnownLengths:
    """Maps "RUN/REQUEST" to output tokens, the closing one included; read again when it has changed."""

    def __init__(self) -> None:
        self._path = Path(os.environ[LENGTHS])
        self._read_at = 0
        self._lengths: dict[str, int] = {}

    def of(self, extra_args: Mapping[str, Any] | None) -> int | None:
        """Of the request with these ``vllm_xargs``; ``None`` if it is not in the file."""
        names = extra_args or {}
        key = f"{names.get('run')}/{names.get('request')}"
        if key not in self._lengths and self._path.stat().st_mtime_ns != self._read_at:
            self._read_at = self._path.stat().st_mtime_ns
            self._lengths = json.loads(self._path.read_text())
        return self._lengths.get(key)
