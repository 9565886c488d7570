"""What the bar of the feedback page concludes, and that it measures every kind of read."""

from __future__ import annotations

from tests.bars import feedback_page


def page_run(unchanged: float = 700.0, misled: str = "") -> feedback_page.Run:
    cost = feedback_page.Cost(100.0, unchanged, 900.0, 5000.0, 100.0)
    return feedback_page.Run(
        cost,
        hostile={"link": 70, "link, believed": 30},
        hostile_engine={"link": 40},
        torn={"new: none": 6, "knew it: before": 6},
        misled=misled,
    )


def test_feedback_page_must_be_read_fast_each_time_and_mislead_nobody() -> None:
    outcome = feedback_page.conclude([page_run(), page_run(900.0)])
    assert outcome.met
    assert "900 ns" in outcome.figure
    assert "200 hostile feedback pages, 80 engine pages, 12 torn writes, nobody misled" in outcome.figure
    assert not feedback_page.conclude([page_run(), page_run(1001.0)]).met
    missed = feedback_page.conclude([page_run(), page_run(misled="believed nan")])
    assert not missed.met
    assert "believed nan" in missed.figure


def test_feedback_page_times_every_kind_of_read() -> None:
    cost = feedback_page.time_reads(0.05)
    assert min(cost.again, cost.unchanged, cost.source, cost.changed, cost.absent) > 0
