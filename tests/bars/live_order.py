"""What ordering by drift is worth on a live vLLM server, against its own order and against an oracle."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.bars.bar import Bar, BarError, Outcome, percent, progress
from tests.bars.noise import TOOL_CPU, on_cpu
from tests.bars.vllm_environment import vllm_environment
from tests.integration.doubles import CPU, ROOT
from tests.vllm_server.guarded import VllmError
from tests.vllm_server.policies import LEFT_OUT, PRIOR, policy_server
from tests.vllm_server.server import VllmServer

from quietcore.scheduler.bench import BenchError
from quietcore.scheduler.bench.serve import Arrivals, ServeOptions, capacity_of, run_serve
from quietcore.scheduler.bench.serve_report import ServeResult

LOAD = 1.1
MAX_TOKENS = 1024
PROMPT_CHARS = 600
REQUESTS_PER_S = 16
SLOTS = 16
# No step is shorter, though the core could do it in 5: at load 1.1 the queue is the small difference of two
# rates, and what a shared machine loses and gains by the minute would be most of it.
STEP_MS = 8.0
TOKENS_PER_S = SLOTS / STEP_MS * 1000  # sets how far lengths are scaled
CONFIDENCE = 0.95
BURST = "fcfs burst"
SETTLE_S = 3.0
WARM_UP, WARM_UP_TOKENS = 400, 2
DATA = Path(os.environ.get("QUIETCORE_DATA", ROOT.parent / "shared" / "data"))
# A file a stream. The prior that is shipped was trained on the prompts and models of all of them.
PRIORS = Path(os.environ.get("QUIETCORE_PRIORS", ROOT / "build" / "priors"))


@dataclass(frozen=True)
class Row:
    """One run; times in seconds, ``rate`` in requests a second, ``digests`` of each request's tokens."""

    pair: int
    stream: str
    policy: str
    rate: float
    latency: float
    p99: float
    ttft: float
    failed: int
    wrong_lengths: int
    digests: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class Workload:
    """Part of a stream: ``path`` is what the client reads, ``lengths`` what only the engine does.

    ``prior`` was trained without the stream's prompts and models.
    """

    name: str
    path: Path
    lengths: Mapping[str, int]
    prior: Path


def prepare(
    folder: Path, pair: int, seconds: float, data: Path = DATA, priors: Path | None = None
) -> Workload:
    """The part of a stream that a pair of runs serves: about ``seconds`` of work for the engine."""
    streams = sorted((data / "streams").glob("*.jsonl.gz"))
    if not streams:
        raise BarError(f"no streams in {data / 'streams'} (QUIETCORE_DATA names the folder of data)")
    source = streams[pair % len(streams)]
    stream = source.name.removesuffix(".jsonl.gz")
    prior = (PRIORS if priors is None else priors) / f"{stream}.qcd"
    if not prior.is_file():
        raise BarError(
            f"no prior without {stream}: run scripts/train_prior --leave-out-stream {stream} --out {prior}"
        )
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        rows = [row for line in lines if (row := json.loads(line))["prompt"]]
    count = min(round(seconds * REQUESTS_PER_S), len(rows))
    first = pair // len(streams) * count % (len(rows) - count + 1)
    rows = rows[first : first + count]
    outputs = [min(row["output_tokens"], MAX_TOKENS) for row in rows]
    scale = min(1.0, seconds * TOKENS_PER_S / sum(outputs))
    lengths = {f"{pair}/{i}": max(1, round(output * scale)) for i, output in enumerate(outputs)}
    path = folder / f"{pair}.jsonl"
    # the client reads no length
    path.write_text("".join(json.dumps({**row, "output_tokens": 0}) + "\n" for row in rows))
    return Workload(source.name.partition("_")[0], path, lengths, prior)


class Servers:
    """Servers by policy, on the same CPUs: no two serve at a time."""

    def __init__(self, venv: Path, folder: Path, lengths: Path) -> None:
        self._venv, self._folder, self._lengths = venv, folder, lengths
        self._running: dict[str, VllmServer] = {}
        self._started = 0
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *exception: object) -> None:
        self._exits.close()

    def known(self, policy: str) -> bool:
        """Whether the one that stays runs already."""
        return policy in self._running

    def url(self, policy: str) -> str:
        """Of the one that stays."""
        if policy not in self._running:
            self._running[policy] = self._exits.enter_context(self.fresh(policy))
        return self._running[policy].url

    @contextlib.contextmanager
    def fresh(self, policy: str, prior: Path | None = None) -> Iterator[VllmServer]:
        """One that knows nothing of the stream yet; ended with its block."""
        progress(f"starting vLLM ({policy})")
        self._started += 1
        folder = self._folder / f"{policy}-{self._started}"
        with policy_server(
            self._venv,
            folder,
            policy,
            self._lengths,
            cpus=(CPU, TOOL_CPU),
            slots=SLOTS,
            step_ms=STEP_MS,
            extra_env={PRIOR: str(prior)} if prior is not None else None,
        ) as server:
            warm_up(server.url, self._folder)
            yield server


def collect(pairs: Iterable[int], seconds: float) -> list[Row]:
    """The runs of these pairs: a burst that gives the capacity, then each policy at ``LOAD`` of it.

    At that load the queue grows by a tenth of the time: runs of seconds have none, and nothing to gain.
    """
    venv = vllm_environment()
    rows: list[Row] = []
    try:
        with (
            tempfile.TemporaryDirectory(prefix="quietcore-bars-", ignore_cleanup_errors=True) as name,
            Servers(venv, Path(name), Path(name) / "lengths.json") as servers,
            on_cpu(TOOL_CPU),
        ):
            for pair in pairs:
                workload = prepare(Path(name), pair, seconds)
                (Path(name) / "lengths.json").write_text(json.dumps(workload.lengths))
                rows += run_pair(servers, pair, workload)
    except (VllmError, BenchError) as error:
        raise BarError(str(error)) from error
    return rows


def run_pair(servers: Servers, pair: int, workload: Workload) -> list[Row]:
    """A burst for the capacity, then each policy on the same requests and times, in turns of order.

    A server's first burst was seen to be some percent slower than its second and is thrown away. The burst
    also tells which tokens differ between two runs of fcfs. Each policy has a server of its own that has
    served nothing but the warm-up, so that all are of the same age and have learned nothing.
    """
    if not servers.known("fcfs"):
        serve(servers.url("fcfs"), pair, workload, "burst", 1.0)
    burst = serve(servers.url("fcfs"), pair, workload, "burst", 1.0)
    rows = [row_of(pair, workload, BURST, burst)]
    rate = LOAD * capacity_of(burst.answers)
    for policy in ("fcfs", "drift", "oracle") if pair % 2 else ("oracle", "drift", "fcfs"):
        with servers.fresh(LEFT_OUT if policy == "drift" else policy, workload.prior) as server:
            time.sleep(SETTLE_S)
            result = serve(server.url, pair, workload, "poisson", rate)
        rows.append(row_of(pair, workload, policy, result))
        progress(f"pair {pair}, {workload.name}, {policy}: {rows[-1].latency:.2f} s")
    return rows


def warm_up(url: str, folder: Path) -> None:
    """Make the engine see steps of many sizes before any of them is timed.

    The answers are cut at two tokens, which tells an estimator nothing.
    """
    path = folder / "warm-up.jsonl"
    rows = [
        {"tenant": "", "prompt": f"warm {i} " * (1 + i % 97), "prompt_tokens": 1, "output_tokens": 0}
        for i in range(WARM_UP)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_serve(ServeOptions(url, path, arrivals="burst", rate=1.0, max_tokens=WARM_UP_TOKENS))


def serve(url: str, pair: int, workload: Workload, arrivals: Arrivals, rate: float) -> ServeResult:
    return run_serve(
        ServeOptions(
            url,
            workload.path,
            arrivals=arrivals,
            rate=rate,
            max_tokens=MAX_TOKENS,
            prompt_chars=PROMPT_CHARS,
            hints=("tenant", "request"),
            extra_body={"vllm_xargs": {"run": str(pair)}, "return_token_ids": True},
        )
    )


def row_of(pair: int, workload: Workload, policy: str, result: ServeResult) -> Row:
    found = result.to_json()
    latency, ttft = found["all"]["latency"] or {}, found["all"]["ttft"] or {}
    return Row(
        pair=pair,
        stream=workload.name,
        policy=policy,
        rate=result.rate,
        latency=latency.get("mean", math.nan),
        p99=latency.get("p99", math.nan),
        ttft=ttft.get("mean", math.nan),
        failed=found["failed"],
        wrong_lengths=sum(a.tokens != workload.lengths[f"{pair}/{a.key}"] for a in result.answers),
        digests={answer.key: answer.digest for answer in result.answers},
    )


def lower_bound(values: Sequence[float], confidence: float = CONFIDENCE) -> float:
    """Of the mean, two-sided, by Student's t; minus infinity of fewer than two."""
    from scipy import stats

    if len(values) < 2:
        return -math.inf
    quantile = stats.t.ppf((1 + confidence) / 2, len(values) - 1)
    return statistics.fmean(values) - float(quantile) * statistics.stdev(values) / math.sqrt(len(values))


def differing(one: Row, other: Row) -> set[str]:
    """Requests whose tokens are not the same in two runs."""
    return {key for key, digest in one.digests.items() if other.digests.get(key) != digest}


def conclude(rows: Sequence[Row]) -> Outcome:
    pairs: dict[int, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        pairs[row.pair][row.policy] = row
    gains, unexplained, table = [], 0, []
    for pair, runs in sorted(pairs.items()):
        fcfs, drift, oracle = runs["fcfs"], runs["drift"], runs["oracle"]
        gains.append(1 - drift.latency / fcfs.latency)
        unexplained += len(differing(fcfs, drift) - differing(fcfs, runs[BURST]))
        table.append(
            [
                f"{pair} {fcfs.stream}",
                *(f"{run.latency:.2f}" for run in (fcfs, drift, oracle)),
                percent(gains[-1]),
                f"{drift.p99 / fcfs.p99:.2f}",
                f"{len(differing(fcfs, drift))}",
                f"{len(differing(fcfs, runs[BURST]))}",
            ]
        )
    totals = {p: sum(runs[p].latency for runs in pairs.values()) for p in ("fcfs", "drift", "oracle")}
    fraction = (totals["fcfs"] - totals["drift"]) / (totals["fcfs"] - totals["oracle"])
    failed = sum(row.failed for row in rows)
    wrong = sum(row.wrong_lengths for row in rows if not row.failed)
    bound = lower_bound(gains)
    p99 = statistics.fmean(runs["drift"].p99 / runs["fcfs"].p99 for runs in pairs.values())
    return Outcome(
        met=bound > 0 and not failed and not unexplained and not wrong,
        figure=f"mean latency {percent(-statistics.fmean(gains))} over {len(gains)} pairs, lower 95 % bound "
        f"of the gain {percent(bound)}; {fraction:.2f} of the live oracle's gain; P99 x {p99:.2f}; "
        f"{failed} failed; {unexplained} requests with other tokens",
        columns=("pair", "fcfs s", "drift s", "oracle s", "gain", "P99", "tokens differ", "fcfs twice"),
        rows=table,
        remarks=[f"{wrong} requests did not have the length given"] if wrong else [],
        raw=[_without_digests(row) for row in rows],
    )


def _without_digests(row: Row) -> dict[str, Any]:
    return {key: value for key, value in asdict(row).items() if key != "digests"}


BAR = Bar(
    "live-order",
    "a live vLLM server at load 1.1: drift has a lower mean latency than fcfs (95 %), fails no request "
    "and changes no token",
    10,
    60,
    lambda runs, seconds: conclude(collect(range(runs), seconds)),
)
