"""Claims about synthetic slides on disk: they open, show what was rendered, have exact truth, need little memory."""

import filecmp
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import openslide
import pyarrow.parquet as pq
import pytest

from cellmill.grid import Box
from cellmill.synthetic.cell_types import TYPE_NAMES
from cellmill.synthetic.cohort import SyntheticCohortConfig, WrittenSlide, make_synthetic_cohort
from cellmill.synthetic.slide import SyntheticSlide
from cellmill.synthetic.truth import open_truth, truth_labels


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WrittenSlide]:
    out = tmp_path_factory.mktemp("cohort")
    config = SyntheticCohortConfig(out=str(out), num_slides=1, width_mm=0.83, height_mm=0.62, mpp=0.5, seed=3)
    return out, make_synthetic_cohort(config)[0]


def test_openslide_opens_the_slide_with_its_scale_and_pyramid(cohort: tuple[Path, WrittenSlide]) -> None:
    out, written = cohort
    with openslide.OpenSlide(out / written.slide) as slide:
        assert slide.dimensions == (1660, 1240)
        assert slide.level_count == 2
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.5)
        assert slide.level_downsamples[1] == pytest.approx(4.0, abs=0.02)
        whole = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"), np.float64)
        small = np.asarray(slide.read_region((0, 0), 1, (415, 310)).convert("RGB"), np.float64)
    shrunk = whole.reshape(310, 4, 415, 4, 3).mean(axis=(1, 3))
    assert np.abs(shrunk - small).mean() < 6.0


def test_the_file_shows_what_the_slide_renders(cohort: tuple[Path, WrittenSlide]) -> None:
    out, written = cohort
    slide = SyntheticSlide.draw(written.seed, width_mm=0.83, height_mm=0.62, mpp=0.5)
    box = Box(433, 381, 833, 781)
    with openslide.OpenSlide(out / written.slide) as file:
        stored = np.asarray(file.read_region((box.x0, box.y0), 0, (box.width, box.height)).convert("RGB"), np.float64)
    difference = np.abs(stored - slide.render(box).image)
    assert difference.mean() < 8.0  # JPEG and its halved colour resolution, nothing else


def test_truth_on_disk_is_the_truth_of_the_slide(cohort: tuple[Path, WrittenSlide]) -> None:
    out, written = cohort
    slide = SyntheticSlide.draw(written.seed, width_mm=0.83, height_mm=0.62, mpp=0.5)
    truth = open_truth(out / written.truth)
    for box in (Box(-30, -20, 200, 180), Box(490, 500, 700, 640), Box(1500, 1100, 1700, 1300), Box(0, 0, 8, 8)):
        stored, direct = truth_labels(truth, box), truth_labels(slide, box)
        assert np.array_equal(stored.labels, direct.labels)
        assert np.array_equal(stored.mask_ids, direct.mask_ids)
        assert np.array_equal(stored.types, direct.types)


def test_mask_and_table_hold_the_same_cells(cohort: tuple[Path, WrittenSlide]) -> None:
    out, written = cohort
    table = pq.read_table(out / written.truth / "cells.parquet")
    mask = np.asarray(open_truth(out / written.truth).labels[:])
    ids, first, counts = np.unique(mask, return_index=True, return_counts=True)
    assert ids[0] == 0
    order = np.argsort(table["mask_id"].to_numpy())
    assert np.array_equal(table["mask_id"].to_numpy()[order], ids[1:])
    assert np.array_equal(table["area_px"].to_numpy()[order], counts[1:])
    assert len(first) - 1 == written.num_cells == table.num_rows
    y, x = np.divmod(ids[1:].astype(np.int64) - 1, mask.shape[1])
    assert np.array_equal(mask[y, x], ids[1:])
    rows, cols = np.nonzero(mask == ids[1])
    row = table.take([int(order[0])]).to_pylist()[0]
    assert row["x_level0_px"] == pytest.approx(cols.mean() + 0.5)
    assert row["y_level0_px"] == pytest.approx(rows.mean() + 0.5)
    assert (row["bbox_x0"], row["bbox_x1"]) == (cols.min(), cols.max() + 1)


def test_a_slide_has_every_type_marks_and_glass() -> None:
    slide = SyntheticSlide.draw(5, width_mm=2.4, height_mm=1.8, mpp=1.0)
    region = slide.render(Box(0, 0, slide.width_px, slide.height_px))
    counts = np.bincount(region.types, minlength=len(TYPE_NAMES))
    assert (counts >= 20).all(), counts
    marks = slide.style.marks
    assert marks is not None
    assert marks.pen is not None
    assert marks.blur is not None
    assert 0 < slide.is_obscured(region.cells).sum() < 0.3 * len(region.types)
    white = np.abs(region.image - slide.style.white_rgb).max(axis=-1) < 14
    assert white[:8].all()
    assert white.mean() > 0.15
    edges = np.concatenate([region.labels[0], region.labels[-1], region.labels[:, 0], region.labels[:, -1]])
    assert not edges.any()


def test_the_same_seed_gives_the_same_bytes_for_any_number_of_workers(tmp_path: Path) -> None:
    for name, num_workers in (("one", 1), ("two", 2)):
        config = SyntheticCohortConfig(
            out=str(tmp_path / name), num_slides=1, width_mm=0.6, height_mm=0.3, seed=9, num_workers=num_workers
        )
        make_synthetic_cohort(config)
    names = sorted(str(path.relative_to(tmp_path / "one")) for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert names == sorted(
        str(path.relative_to(tmp_path / "two")) for path in (tmp_path / "two").rglob("*") if path.is_file()
    )
    match, mismatch, errors = filecmp.cmpfiles(tmp_path / "one", tmp_path / "two", names, shallow=False)
    assert (mismatch, errors) == ([], [])
    assert len(match) == len(names)


def test_cohort_json_lists_the_slides(cohort: tuple[Path, WrittenSlide]) -> None:
    out, written = cohort
    document = json.loads((out / "cohort.json").read_text(encoding="utf-8"))
    assert document["slides"][0]["slide_id"] == written.slide_id
    assert document["config"]["seed"] == 3


@pytest.mark.parametrize(
    ("field", "value"), [("num_slides", 0), ("mpp", 0.0), ("width_mm", float("nan")), ("jpeg_quality", 101)]
)
def test_bad_settings_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        SyntheticCohortConfig(**{"out": "x", field: value})  # type: ignore[arg-type]


_PEAK = """
import resource, sys
from pathlib import Path
from cellmill.synthetic.slide import SyntheticSlide
from cellmill.synthetic.slide_writer import write_slide
out, width_mm, height_mm = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
slide = SyntheticSlide.draw(1, width_mm=width_mm, height_mm=height_mm, mpp=1.0)
write_slide(slide, out / "slide.tif", truth_folder=out / "truth")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_a_large_slide_needs_no_more_memory_than_a_small_one(tmp_path: Path) -> None:
    peaks = [
        int(
            subprocess.run(
                [sys.executable, "-c", _PEAK, str(tmp_path / name), str(width_mm), str(height_mm)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for name, width_mm, height_mm in (("small", 1.6, 1.1), ("large", 4.7, 3.1))
    ]
    assert peaks[1] <= 1.15 * peaks[0], peaks
