"""Two models on the same slides: each cell has one partner at most, and the gate says what its figures say."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import shapely
from cohort_helpers import RecordedProgress, run
from oracle import OracleModel, OracleSource, load_truth, make_slide, oracle_maps

from cellmill.cohort.engine import serial_engine
from cellmill.comparing.config import CompareModelsConfig
from cellmill.comparing.gate import Margins, SlideChange, judge
from cellmill.comparing.job import main
from cellmill.comparing.pairing import SlideCells, pair_cells
from cellmill.comparing.run import Comparison, compare_models
from cellmill.comparing.slide import change_of


def cells_of(boxes: list[tuple[float, float, float, float]], types: list[int] | None = None) -> SlideCells:
    """Boxes in level-0 px; a px is a um here."""
    outlines = np.array([shapely.box(*box) for box in boxes], np.object_)
    centres = np.array([((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in boxes]).reshape(-1, 2)
    return SlideCells(outlines, centres, np.array(types or [0] * len(boxes), np.int64), np.full(len(boxes), 0.9))


def test_cells_that_overlap_by_more_than_half_are_one_and_the_others_are_lost_or_gained() -> None:
    before = cells_of([(0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10)])
    after = cells_of([(60, 0, 70, 10), (22, 0, 32, 10), (0, 0, 10, 8)])
    pairs = pair_cells(before, after)
    assert sorted(zip(pairs.reference.tolist(), pairs.candidate.tolist(), strict=True)) == [(0, 2), (1, 1)]
    iou = dict(zip(pairs.reference.tolist(), pairs.iou.tolist(), strict=True))
    assert iou[0] == pytest.approx(0.8) and iou[1] == pytest.approx(8 / 12)
    assert pairs.lost.tolist() == [2] and pairs.gained.tolist() == [0]


def test_a_nucleus_drawn_much_smaller_is_still_itself_and_a_far_one_is_not() -> None:
    before = cells_of([(0, 0, 10, 10), (40, 0, 50, 10)])
    after = cells_of([(3, 3, 7, 7), (44, 6, 54, 16)])  # 2.8 um and 7.2 um away; IoU 0.16 and 0.1
    pairs = pair_cells(before, after)
    assert (pairs.reference.tolist(), pairs.candidate.tolist()) == ([0], [0])
    assert pairs.iou[0] == pytest.approx(0.16)
    assert pairs.lost.tolist() == pairs.gained.tolist() == [1]


def test_one_cell_split_in_two_keeps_one_partner() -> None:
    pairs = pair_cells(cells_of([(0, 0, 10, 10)]), cells_of([(0, 0, 10, 6), (0, 6, 10, 10)]))
    assert (pairs.reference.tolist(), pairs.candidate.tolist(), pairs.gained.tolist()) == ([0], [0], [1])


def test_nothing_against_something_is_all_lost_or_all_gained() -> None:
    some, none = cells_of([(0, 0, 10, 10)]), cells_of([])
    assert pair_cells(some, none).lost.tolist() == pair_cells(none, some).gained.tolist() == [0]


def test_pairs_are_those_of_label_images() -> None:
    """The same partners as `match_by_iou` finds on pixels, for many cells at random."""
    from cellmill.metrics.matching import match_instances

    rng = np.random.default_rng(0)
    corners = np.stack(np.meshgrid(np.arange(0, 400, 20), np.arange(0, 400, 20)), axis=-1).reshape(-1, 2)
    sets = []
    for _ in range(2):
        kept = corners[rng.random(len(corners)) < 0.9]
        low = kept + rng.integers(0, 6, kept.shape)
        sets.append(np.concatenate([low, low + rng.integers(7, 14, kept.shape)], axis=1))
    images = []
    for boxes in sets:
        image = np.zeros((420, 420), np.int32)
        for number, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
            image[y0:y1, x0:x1] = number + 1
        images.append(image)
    ours = pair_cells(*(cells_of([tuple(box) for box in boxes.tolist()]) for boxes in sets))
    theirs = match_instances(images[0], images[1])
    sure = ours.iou > 0.5
    found = set(zip(ours.reference[sure].tolist(), ours.candidate[sure].tolist(), strict=True))
    assert found == set(zip((theirs.reference - 1).tolist(), (theirs.predicted - 1).tolist(), strict=True))
    assert len(found) > 50


def test_what_became_of_cells_is_counted_by_type() -> None:
    before = cells_of([(0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10)], [0, 1, 1])
    after = cells_of([(0, 0, 10, 10), (20, 0, 30, 10), (80, 0, 90, 10)], [0, 0, 1])
    change = change_of("s", before, after, pair_cells(before, after), num_types=2)
    assert change.counts.tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]
    assert (change.num_reference, change.num_candidate) == (3, 3)
    assert (change.num_lost, change.num_gained, change.num_retyped, change.num_redrawn) == (1, 1, 1, 0)


def slide_change(number: int, *, same: int = 1000, lost: int = 0, gained: int = 0, retyped: int = 0) -> SlideChange:
    return SlideChange(f"s{number}", np.array([[same, retyped, lost], [0, 200, 0], [gained, 0, 0]]))


def figures_of(changes: list[SlideChange], **margins: float) -> dict[str, tuple[float, bool]]:
    verdict = judge(changes, ["a", "b"], margins=Margins(**margins))  # type: ignore[arg-type]
    return {check.name: (check.value, check.passed) for check in verdict.checks}


def test_figures_are_those_worked_out_by_hand() -> None:
    figures = figures_of([slide_change(n, same=900, lost=60, gained=30, retyped=40) for n in range(4)])
    assert figures["lost"] == (pytest.approx(60 / 1200), True)  # at its margin of 5 %, all slides alike
    assert figures["gained"] == (pytest.approx(30 / 1200), True)
    assert figures["retyped"] == (pytest.approx(40 / 1140), True)
    assert figures["number of a"] == (pytest.approx((930 - 1000) / 1000), True)
    assert figures["number of b"] == (pytest.approx(40 / 200), False)


def test_a_change_on_one_slide_of_few_is_not_within_its_margin_for_sure() -> None:
    changes = [slide_change(n) for n in range(5)] + [slide_change(5, lost=200)]
    value, passed = figures_of(changes)["lost"]
    assert value < 0.05 and not passed
    assert figures_of(changes, max_lost=0.2)["lost"][1]


def test_equal_cell_sets_are_accepted_and_few_slides_or_missing_ones_are_not() -> None:
    same = [slide_change(n) for n in range(3)]
    assert judge(same, ["a", "b"], margins=Margins()).accepted
    few = judge(same[:2], ["a", "b"], margins=Margins())
    assert not few.accepted and "3 are needed" in few.reasons()[0]
    failed = SlideChange("s9", np.zeros((3, 3), np.int64), problem="done in the reference, but in the candidate it is")
    assert judge([*same, failed], ["a", "b"], margins=Margins()).reasons() == [f"s9: {failed.problem}"]
    assert not judge([failed], ["a", "b"], margins=Margins()).accepted


def test_rare_types_are_told_and_not_judged() -> None:
    rare = [SlideChange(f"s{n}", np.array([[1000, 0, 0], [0, 3, 3], [0, 0, 0]])) for n in range(3)]
    checks = {check.name: check for check in judge(rare, ["a", "b"], margins=Margins()).checks}
    assert checks["number of b"].value == -0.5 and checks["number of b"].passed and not checks["number of b"].judged
    assert "too few" in str(checks["number of b"])


@dataclass(frozen=True)
class OtherOracle(OracleModel):
    """Does not see every tenth cell, and calls every lymphocyte a macrophage."""

    name: str = "other"
    digest: str = "other-1"
    missing: int = 10
    swapped: tuple[str, str] = field(default=("lymphocyte", "macrophage"))

    def open(self, *, device: str, batch_size: int, num_threads: int) -> "OtherSource":
        return OtherSource(self)


class OtherSource(OracleSource):
    def _maps_of(self, slide_id, tile_indices):  # type: ignore[no-untyped-def]
        if slide_id not in self._maps:
            truth, model = load_truth(self._model.folder, slide_id), self._model
            labels = np.where((truth.labels % model.missing == 0), 0, truth.labels)
            was, now = (model.ontology.index(name) for name in model.swapped)
            types = np.where(truth.types == was, now, truth.types)
            self._maps[slide_id] = oracle_maps(type(truth)(labels, types), len(model.ontology))
        return super()._maps_of(slide_id, tile_indices)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    """A cell set against a model that is run for the comparison, with pictures."""
    folder = tmp_path_factory.mktemp("compare")
    for number in range(3):
        make_slide(folder / "slides" / f"s{number}.tif", seed=number, width=500, height=400)
    assert run(folder / "slides", folder / "reference").all_done
    config = CompareModelsConfig(
        reference=str(folder / "reference"),
        candidate="other",
        slides=(str(folder / "slides"),),
        out=str(folder / "out"),
        device="cpu",
        num_pictures=9,
        min_cells=10,
    )
    load = lambda spec: OtherOracle(folder / "slides")  # noqa: E731
    return folder, compare_models(config, progress=RecordedProgress, load=load, engine=serial_engine)


def test_lost_and_retyped_cells_are_those_the_candidate_was_made_to_change(
    compared: tuple[Path, Comparison],
) -> None:
    folder, comparison = compared
    for change in comparison.changes:
        truth = load_truth(folder / "slides", change.slide_id)
        unseen = np.arange(1, truth.num_cells + 1) % 10 == 0
        lymphocyte = comparison.reference.ontology.index("lymphocyte")
        assert not change.problem and change.num_gained == 0
        assert change.num_lost == unseen.sum()
        assert change.num_retyped == ((truth.types == lymphocyte) & ~unseen).sum()
        assert change.mean_iou == pytest.approx(1.0)
    assert not comparison.verdict.accepted
    assert [reason.split(" ")[0] for reason in comparison.verdict.reasons()][:2] == ["lost", "retyped"]


def test_the_verdict_is_written_as_json_and_the_page_needs_nothing_beside_it(
    compared: tuple[Path, Comparison],
) -> None:
    folder, comparison = compared
    document = json.loads((folder / "out" / "comparison.json").read_text())
    assert document["accepted"] is False and document["candidate"]["model_digest"] == "other-1"
    assert np.array(document["counts"]).sum() == sum(change.num_reference for change in comparison.changes)
    page = (folder / "out" / "comparison.html").read_text()
    assert page.count("data:image/jpeg") == len(comparison.pictures) == 6  # none was gained
    assert "refused" in page and "http" not in page.replace("http-equiv", "")
    assert {picture.kind for picture in comparison.pictures} == {"lost", "retyped"}


def test_a_cell_set_against_itself_is_accepted_by_the_job(compared: tuple[Path, Comparison], tmp_path: Path) -> None:
    reference = str(compared[0] / "reference")
    flags = ["--reference", reference, "--candidate", reference, "--out", str(tmp_path), "--min-cells", "10"]
    assert main(flags) == 0
    document = json.loads((tmp_path / "comparison.json").read_text())
    assert document["accepted"] is True and document["reasons"] == []


def test_the_job_refuses_with_3_and_says_what_cannot_be_compared_with_2(
    compared: tuple[Path, Comparison], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = compared[0]
    sides = ["--reference", str(folder / "reference"), "--out", str(tmp_path)]
    assert main([*sides, "--candidate", str(folder / "out" / "candidate")]) == 3
    assert "not within the margin" in capsys.readouterr().out
    assert main([*sides, "--candidate", str(tmp_path / "nothing")]) == 2
    assert "neither a cell set" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--max-lost"):
        CompareModelsConfig(reference="a", candidate="b", out="c", max_lost=-1)
