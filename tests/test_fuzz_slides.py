"""The short form of the fuzz suite: some damaged slides of every kind, by themselves and as a cohort."""

from pathlib import Path

import numpy as np
import pytest
from cohort_helpers import run as run_cohort
from fuzz_slides import EDITS, MAX_SECONDS, PLANTED, mutant, run, seeds
from oracle import OracleModel, make_slide

from cellmill.verify import verify_cellset


@pytest.fixture(scope="module")
def data(request: pytest.FixtureRequest) -> Path | None:
    try:
        return request.getfixturevalue("shared_data")
    except pytest.skip.Exception:
        return None  # synthetic slides do without


def test_damaged_slides_are_the_same_for_the_same_number() -> None:
    assert mutant(5, None) == mutant(5, None) != mutant(6, None)
    assert len(seeds(None)) >= 7 and len(EDITS) >= 9
    assert all(mutant(number, None).content != seeds(None)[mutant(number, None).seed_name] for number in range(3))


def test_every_damaged_slide_opens_or_is_set_aside_with_a_reason(data: Path | None) -> None:
    outcomes = run(list(range(10_000, 10_130)), data)
    assert [outcome for outcome in outcomes if outcome.fault] == []
    assert len(outcomes) == 130 and max(outcome.seconds for outcome in outcomes) < MAX_SECONDS
    ended = {outcome.ended for outcome in outcomes}
    assert "opened" in ended and len(ended) > 1


def test_a_cohort_of_damaged_slides_ends_each_with_a_status_and_stays_whole(tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    make_slide(slides / "good.tif", width=300, height=260)
    none = {"labels": np.zeros((700, 700), np.int32), "types": np.zeros(0, np.int64)}
    for number in range(20_000, 20_008):
        damaged = mutant(number, None)
        (slides / f"damaged_{number}{damaged.suffix}").write_bytes(damaged.content)
        np.savez(slides / f"damaged_{number}.truth.npz", **none)
    report = run_cohort(slides, tmp_path / "out", OracleModel(slides), mpp=0.5, reader_timeout_seconds=30)
    outcomes = {status.slide_id: status.outcome for status in report.statuses}
    assert len(outcomes) == 9 and outcomes["good"] == "done"
    for status in report.statuses:
        assert status.outcome in ("done", "done_empty", "failed")
        assert status.outcome == "done" or len(" ".join(status.reasons)) > 10
        assert not any(word in " ".join(status.reasons) for word in PLANTED.split())
    assert verify_cellset(tmp_path / "out").findings == ()
