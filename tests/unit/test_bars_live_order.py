"""What the live bar concludes from its runs."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from tests.bars.bar import BarError
from tests.bars.live_order import (
    BURST,
    REQUESTS_PER_S,
    TOKENS_PER_S,
    Row,
    conclude,
    lower_bound,
    prepare,
)

DIGESTS = {str(i): f"d{i}" for i in range(10)}


def runs(pair: int, fcfs: float, drift: float, oracle: float) -> list[Row]:
    row = Row(pair, "s1", "fcfs", 10.0, fcfs, 3 * fcfs, 1.0, 0, 0, DIGESTS)
    return [
        replace(row, policy=BURST),
        row,
        replace(row, policy="drift", latency=drift, p99=3 * fcfs),
        replace(row, policy="oracle", latency=oracle),
    ]


GOOD = [row for pair in range(10) for row in runs(pair, 4.0, 3.0 + 0.02 * pair, 2.5)]


def test_a_steady_gain_meets_the_bar() -> None:
    outcome = conclude(GOOD)
    assert outcome.met
    assert "0.61 of the live oracle's gain" in outcome.figure
    assert len(outcome.rows) == 10
    assert "digests" not in json.dumps(outcome.raw)


def test_a_gain_that_may_be_chance_misses_it() -> None:
    rows = [row for pair in range(10) for row in runs(pair, 4.0, 3.0 if pair % 2 else 4.8, 2.5)]
    assert not conclude(rows).met


def test_a_failure_a_wrong_length_or_other_tokens_miss_it() -> None:
    for change in ({"failed": 1}, {"wrong_lengths": 1}, {"digests": {**DIGESTS, "3": "other"}}):
        rows = [replace(r, **change) if (r.pair, r.policy) == (4, "drift") else r for r in GOOD]
        assert not conclude(rows).met, change


def test_tokens_may_differ_where_two_runs_of_fcfs_do() -> None:
    def change(row: Row) -> Row:
        if row.pair == 4 and row.policy in ("drift", BURST):
            return replace(row, digests={**DIGESTS, "3": row.policy})
        return row

    assert conclude([change(row) for row in GOOD]).met


def test_the_bound_is_students() -> None:
    assert lower_bound([1.0]) == -math.inf
    # t(0.975, 3) = 3.1824
    assert lower_bound([1.0, 2.0, 3.0, 4.0]) == pytest.approx(2.5 - 3.1824 * 1.29099 / 2, rel=1e-4)


def test_the_client_is_given_no_length(tmp_path: Path) -> None:
    (tmp_path / "streams").mkdir()
    with gzip.open(tmp_path / "streams" / "s1_x.jsonl.gz", "wt") as lines:
        lines.write('{"i": -1, "prompt": "", "output_tokens": 9}\n')  # a live server cannot be asked nothing
        for i in range(100):
            lines.write(json.dumps({"i": i, "prompt": f"{i}", "output_tokens": 1000 + i}) + "\n")
    count = 2 * REQUESTS_PER_S
    (tmp_path / "s1_x.qcd").touch()
    workloads = [prepare(tmp_path, pair, 2.0, tmp_path, tmp_path) for pair in (0, 1)]
    for pair, workload in enumerate(workloads):
        sent = [json.loads(line) for line in workload.path.read_text().splitlines()]
        assert len(sent) == count
        assert {row["output_tokens"] for row in sent} == {0}
        assert set(workload.lengths) == {f"{pair}/{i}" for i in range(count)}
        assert sum(workload.lengths.values()) == pytest.approx(2 * TOKENS_PER_S, rel=0.01)
    first, second = (json.loads(w.path.read_text().splitlines()[0])["i"] for w in workloads)
    assert (first, second) == (0, count)
    assert {workload.prior for workload in workloads} == {tmp_path / "s1_x.qcd"}


def test_no_prior_that_has_seen_the_prompts_takes_the_place_of_one_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "streams").mkdir()
    with gzip.open(tmp_path / "streams" / "s1_x.jsonl.gz", "wt") as lines:
        lines.write('{"i": 0, "prompt": "x", "output_tokens": 9}\n')
    with pytest.raises(BarError, match="no prior without s1_x: run scripts/train_prior"):
        prepare(tmp_path, 0, 2.0, tmp_path, tmp_path)
