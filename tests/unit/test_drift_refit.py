"""Refits in a process of their own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

import pytest
from tests.unit.drift_traffic import make_traffic

from quietcore.scheduler.drift import refit
from quietcore.scheduler.drift.fitting import Fitted
from quietcore.scheduler.drift.rows import RowStore

np = pytest.importorskip("numpy", reason="needs numpy, of the [scheduler] extra")

WIDTH = 3


@pytest.fixture
def refitter(monkeypatch: pytest.MonkeyPatch) -> Iterator[refit.BackgroundRefitter]:
    monkeypatch.setattr(refit, "_MOST_SHARE", 1.0)
    made = refit.BackgroundRefitter(WIDTH, "oblivious")
    yield made
    made.close()


def fill(store: RowStore, count: int) -> None:
    for number, (_, length) in enumerate(make_traffic(count)):
        store.add(np.array([number, length, 1.0]), np.array([number % 7]), float(length), 1.0, 4.0)


def wait_for(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def fit(refitter: refit.BackgroundRefitter, store: RowStore) -> Fitted:
    refitter.request(store, 1)
    assert wait_for(lambda: not refitter._busy)
    fitted = refitter.take()
    assert fitted is not None
    return fitted


def test_it_gives_what_a_refit_at_once_gives(refitter: refit.BackgroundRefitter) -> None:
    store = RowStore(WIDTH)
    fill(store, 60)
    inline = refit.InlineRefitter(WIDTH, "oblivious")
    for _ in range(2):  # the second time only new rows are sent
        fitted = fit(refitter, store)
        inline.request(store, 1)
        other = inline.take()
        assert other is not None
        assert fitted.rows == other.rows == len(store)
        assert np.array_equal(fitted.forest.value, other.forest.value)  # type: ignore[attr-defined]
        assert np.array_equal(fitted.ridge.table, other.ridge.table)
        fill(store, 30)
    assert refitter.take() is None


def test_a_dead_process_is_replaced_and_gets_all_rows(
    refitter: refit.BackgroundRefitter, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refit, "_RETRY", (0.0,))
    store = RowStore(WIDTH)
    fill(store, 60)
    fit(refitter, store)
    assert refitter._child is not None
    refitter._child.kill()
    refitter._child.wait()
    fill(store, 20)
    with caplog.at_level(logging.WARNING):
        refitter.request(store, 1)
        assert wait_for(lambda: not refitter._busy)
    assert refitter.take() is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert fit(refitter, store).rows == 80


def test_a_dead_thread_is_replaced(refitter: refit.BackgroundRefitter) -> None:
    store = RowStore(WIDTH)
    fill(store, 60)
    fit(refitter, store)
    assert refitter._thread is not None
    refitter._orders.put(None)  # ends it
    refitter._thread.join()
    assert fit(refitter, store).rows == 60


def test_what_cannot_start_is_said_once_and_tried_again_later(
    refitter: refit.BackgroundRefitter, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refit, "WORKER", "quietcore.scheduler.drift.no_such_module")
    monkeypatch.setattr(refit, "_RETRY", (0.0, 0.0, 3600.0))
    store = RowStore(WIDTH)
    fill(store, 60)
    for _ in range(5):
        refitter.request(store, 1)
        assert wait_for(lambda: not refitter._busy)
    assert refitter._failures == 3  # the last two fell into the hour of rest
    assert [record.message.count("refit failed") for record in caplog.records] == [1]


def test_closing_leaves_no_process() -> None:
    refitter = refit.BackgroundRefitter(WIDTH, "oblivious")
    store = RowStore(WIDTH)
    fill(store, 60)
    fit(refitter, store)
    child, thread = refitter._child, refitter._thread
    assert child is not None
    assert thread is not None
    refitter.close()
    assert child.poll() is not None
    assert not thread.is_alive()
    refitter.request(store, 1)
    assert refitter.take() is None


def test_the_store_keeps_the_last_rows_in_order() -> None:
    store, copy = RowStore(WIDTH, most=50), RowStore(WIDTH, most=50)
    fill(store, 30)
    copy.merge(store.since(0))
    fill(store, 90)
    copy.merge(store.since(copy.total))
    ours, theirs = store.rows(), copy.rows()
    assert len(store) == len(ours.length) == 50
    assert np.array_equal(ours.length, theirs.length)
    assert np.array_equal(ours.fold, theirs.fold)
    assert ours.features[:, 0].tolist() == list(range(40, 90))


def test_one_that_is_not_taken_up_is_said_so(
    refitter: refit.BackgroundRefitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refit, "_MOST_SHARE", 0.001)
    store = RowStore(WIDTH)
    fill(store, 60)
    assert refitter.request(store, 1)
    assert not refitter.request(store, 2)
    assert wait_for(lambda: not refitter._busy)
    assert not refitter.request(store, 3), "a busy engine must not refit without end"
    refitter._rest_until = 0.0
    assert refitter.request(store, 4)
