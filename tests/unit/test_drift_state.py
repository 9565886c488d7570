"""The drift model's file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tests.unit.drift_traffic import make_traffic, play

from quietcore.scheduler import drift
from quietcore.scheduler.drift import estimator as estimators
from quietcore.scheduler.drift import prior, sealed
from quietcore.scheduler.drift.estimator import DriftEstimator

np = pytest.importorskip("numpy", reason="needs numpy, of the [scheduler] extra")


def build(name: str = "drift-light") -> DriftEstimator:
    made = drift.build(name, background=False)
    assert isinstance(made, DriftEstimator)
    return made


@pytest.fixture
def saved(tmp_path: Path) -> tuple[DriftEstimator, Path]:
    learned = build()
    play(learned, make_traffic(120))
    path = tmp_path / "state"
    learned.snapshot().write(path)
    return learned, path


@pytest.mark.parametrize("name", ["drift-light", "drift"])
def test_a_restart_forgets_nothing_that_estimates_rest_on(name: str, tmp_path: Path) -> None:
    learned, restarted = build(name), build(name)
    play(learned, make_traffic(120))
    learned.snapshot().write(tmp_path / "state")
    restarted.load(tmp_path / "state")
    probes = [facts for facts, _ in make_traffic(40, seed=9)]
    assert [restarted.estimate(facts) for facts in probes] == [learned.estimate(facts) for facts in probes]
    # and it learns on
    assert restarted.revision == 1
    play(restarted, make_traffic(120, seed=4))
    assert restarted.revision > 1


@pytest.mark.parametrize("where", [0, 10, 60, -1])
def test_a_damaged_file_is_refused_and_changes_nothing(
    saved: tuple[DriftEstimator, Path], where: int
) -> None:
    learned, path = saved
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)
    probe = make_traffic(1, seed=5)[0][0]
    before = learned.estimate(probe)
    with pytest.raises(sealed.DamagedError, match=r"state.*delete it"):
        learned.load(path)
    assert learned.estimate(probe) == before


def test_half_a_file_is_refused(saved: tuple[DriftEstimator, Path]) -> None:
    learned, path = saved
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(sealed.DamagedError):
        learned.load(path)


def test_a_file_of_other_features_is_refused(
    saved: tuple[DriftEstimator, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    learned, path = saved
    monkeypatch.setattr(estimators, "FEATURES", (*estimators.FEATURES[:-1], "another"))
    with pytest.raises(sealed.DamagedError, match="another version"):
        learned.load(path)


def test_a_well_sealed_file_of_nonsense_is_refused(saved: tuple[DriftEstimator, Path]) -> None:
    learned, path = saved
    meta, arrays = sealed.read(path)
    for wrong in (
        {"features": np.zeros((2, 3))},
        {"words": arrays["words"] | 0xFFFF},
        {"numbers": arrays["numbers"] * np.nan},
        {"forest feature": arrays["forest feature"] + 1000},
        {"ridge table": arrays["ridge table"][:5]},
    ):
        sealed.write(path, meta, {**arrays, **wrong})
        with pytest.raises(sealed.DamagedError):
            learned.load(path)
    sealed.write(path, {**meta, "trust": [9.0]}, arrays)
    with pytest.raises(sealed.DamagedError):
        learned.load(path)


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "objects"
    sealed.write(path, {}, {"objects": np.array([{}], dtype=object)})
    with pytest.raises(sealed.DamagedError, match="allow_pickle=False"):
        sealed.read(path)


def test_writing_is_all_or_nothing_and_repeatable(saved: tuple[DriftEstimator, Path], tmp_path: Path) -> None:
    _, path = saved
    meta, arrays = sealed.read(path)
    again, other = tmp_path / "again", tmp_path / "other"
    sealed.write(again, meta, arrays)
    sealed.write(other, meta, arrays)
    assert again.read_bytes() == other.read_bytes()
    with pytest.raises(TypeError):
        sealed.write(again, {"not for JSON": {1, 2}}, arrays)
    assert again.read_bytes() == other.read_bytes()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["again", "other", "state"]


def test_without_its_prior_the_model_still_serves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    damaged = tmp_path / "prior"
    damaged.write_bytes(prior.SHIPPED.read_bytes()[:-1])
    estimator = drift.build("drift-light", prior=damaged, background=False)
    assert [record.message.split(":")[1].strip() for record in caplog.records] == [
        "no prior for the drift model"
    ]
    assert all(estimate.mean >= 1 for estimate in play(estimator, make_traffic(60)))


def test_the_shipped_prior_is_small_and_fits_this_version() -> None:
    assert prior.SHIPPED.stat().st_size < 1 << 20
    assert prior.load(prior.SHIPPED).table.any()


def test_a_snapshot_is_of_its_moment_while_the_model_learns_on(
    saved: tuple[DriftEstimator, Path], tmp_path: Path
) -> None:
    learned, path = saved
    snapshot = learned.snapshot()
    play(learned, make_traffic(120, seed=3))
    snapshot.write(tmp_path / "later")
    (meta, arrays), (later, later_arrays) = sealed.read(path), sealed.read(tmp_path / "later")
    for newer in ("saved", "groups"):
        del meta[newer], later[newer]
    assert later == meta
    assert later_arrays.keys() == arrays.keys()
    assert all((later_arrays[name] == arrays[name]).all() for name in arrays)


def test_meta_data_are_written_as_json_writes_them() -> None:
    items = [[["a", 1], 0.5, math.inf], {"y": 1, "x": "ü"}]
    meta = {"b": items, "a": {"d": 1, "c": [2]}, "c": [], "é": None}
    whole = json.dumps(meta, sort_keys=True)
    assert sealed._encode(meta) == whole
    assert sealed._encode({**meta, "b": iter(items), "c": iter(())}) == whole


def test_long_work_in_a_thread_rests_each_millisecond(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, rests = [0.0], [0]

    def rest(_: float) -> None:
        rests[0] += 1

    monkeypatch.setattr(sealed, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(sealed, "sleep", rest)
    for number, item in enumerate(sealed.gently(range(100))):
        assert item == number
        clock[0] += 0.0001
    assert 8 <= rests[0] <= 10
