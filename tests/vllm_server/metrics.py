"""The figures that vLLM gives at /metrics."""

from __future__ import annotations

import re
import urllib.request

TOKENS = "vllm:generation_tokens_total"


def read_metrics(url: str) -> dict[str, float]:
    """The counters and sums of ``url``/metrics, added up over their labels (no histogram buckets)."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found: dict[str, float] = {TOKENS: 0.0}
    for name, value in re.findall(r"^(vllm:\w+)(?:\{[^\n]*\})? (\S+)$", text, re.MULTILINE):
        if not name.endswith(("_bucket", "_created")):
            found[name] = found.get(name, 0.0) + float(value)
    return found
