"""What `compare_models` refuses is not promoted, and a comparison of other models counts for none."""

import json
from pathlib import Path

import pytest

from cellmill.models.agreement import Agreement
from cellmill_training.tracking.promotion import Verdict, read_moved


def comparison(path: Path, *, accepted: bool) -> Path:
    document = {
        "accepted": accepted,
        "reasons": [] if accepted else ["lost 9.0% (7.0% to 11.0%): not within the margin of 5.0%"],
        "candidate": {"model_digest": "new"},
        "reference": {"model_digest": "old"},
    }
    path.write_text(json.dumps(document))
    return path


def test_a_refused_comparison_stands_against_a_candidate_that_is_good_otherwise(tmp_path: Path) -> None:
    path = comparison(tmp_path / "comparison.json", accepted=False)
    moved = read_moved(path, candidate_digest="new", champion_digest="old")
    verdict = Verdict((), (), Agreement("compiled on cpu", 1.0), moved)
    assert not verdict.accepted and verdict.reasons() == [
        f"on a cohort sample: {json.loads(path.read_text())['reasons'][0]}"
    ]
    assert Verdict((), (), Agreement("compiled on cpu", 1.0)).accepted


def test_an_accepted_one_says_nothing_and_one_of_other_models_is_not_taken(tmp_path: Path) -> None:
    path = comparison(tmp_path / "comparison.json", accepted=True)
    assert read_moved(path, candidate_digest="new", champion_digest="old") == ()
    with pytest.raises(ValueError, match="compare these two"):
        read_moved(path, candidate_digest="newer", champion_digest="old")
    (tmp_path / "comparison.json").write_text("[]")
    with pytest.raises(ValueError, match="is no comparison"):
        read_moved(path, candidate_digest="new", champion_digest="old")
