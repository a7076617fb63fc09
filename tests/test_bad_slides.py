"""What goes wrong with slides and outputs: each has its status and a reason for people, and the others finish."""

import errno
import json
import math
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from cohort_helpers import RecordedProgress, run
from oracle import OracleModel, make_slide, write_tiff

from cellmill.cohort.run import RunReport
from cellmill.store import objects
from cellmill.store.cellset import CellSet
from cellmill.store.errors import OutputError
from cellmill_schemas.slides import SlideStatus

SIZE = {"width": 300, "height": 260}


def by_id(report: RunReport) -> dict[str, SlideStatus]:
    return {status.slide_id: status for status in report.statuses}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, SlideStatus]]:
    """One run over everything that can be wrong with a file."""
    folder = tmp_path_factory.mktemp("slides")
    make_slide(folder / "good.tif", **SIZE)
    make_slide(folder / "good_too.tif", seed=5, **SIZE)
    whole = (folder / "good.tif").read_bytes()
    (folder / "truncated.tif").write_bytes(whole[: len(whole) // 3])
    (folder / "zero_bytes.svs").write_bytes(b"")
    (folder / "text.svs").write_text("Dear colleague, please find attached", encoding="utf-8")
    make_slide(folder / "no_mpp.tif", mpp=None, **SIZE)
    make_slide(folder / "mpp_of_a_million.tif", mpp=(1e6, 1e6), **SIZE)
    make_slide(folder / "resolution_of_0.tif", mpp=(math.inf, math.inf), **SIZE)  # no pixels per cm
    make_slide(folder / "uneven.tif", mpp=(0.5, 0.4), **SIZE)
    make_slide(folder / "listed" / "mpp_of_0.tif", **SIZE)
    manifest = folder / "listed" / "list.csv"
    manifest.write_text("slide,mpp\nmpp_of_0.tif,0\n", encoding="utf-8")
    write_tiff(folder / "glass.tif", np.full((260, 300, 3), 246, np.uint8), mpp=(0.5, 0.5))
    make_slide(folder / "smaller_than_a_tile.tif", width=90, height=70)
    for name in ("crashes_at_open", "crashes_at_read", "eats_memory", "hangs"):
        shutil.copy(folder / "good.tif", folder / f"{name}.tif")
    out = folder / "out"
    slides = [
        *(str(path) for path in sorted(folder.glob("*.tif"))),
        str(folder / "*.svs"),
        str(folder / "gone.svs"),
        str(manifest),
    ]
    report = run(
        slides, out, reader="bad_readers:open_badly", reader_timeout_seconds=8, reader_memory_gib=0.5, max_attempts=2
    )
    return out, by_id(report)


@pytest.mark.parametrize(
    ("slide_id", "outcome", "words"),
    [
        ("good", "done", []),
        ("good_too", "done", []),
        ("uneven", "done", []),
        ("smaller_than_a_tile", "done", []),
        ("glass", "done_empty", ["%"]),
        ("truncated", "failed", ["None of the slide's tissue could be read", "cut off"]),
        ("zero_bytes", "failed", ["empty (0 bytes)"]),
        ("text", "failed", ["text, not a slide"]),
        ("gone", "failed", ["no such file"]),
        ("no_mpp", "failed", ["states no scale", "--mpp"]),
        ("mpp_of_a_million", "failed", ["um/px", "--mpp"]),
        ("resolution_of_0", "failed", ["--mpp", "manifest"]),
        ("mpp_of_0", "failed", ["The scale given", "0 x 0 um/px", "manifest's `mpp`"]),
        ("crashes_at_open", "failed", ["failed 2 times", "SIGSEGV", "--max-attempts"]),
        ("crashes_at_read", "failed", ["failed 2 times", "SIGSEGV", "reading level 0"]),
        ("eats_memory", "failed", ["failed 2 times", "more than the 512 MiB allowed"]),
        ("hangs", "failed", ["failed 2 times", "no answer in 8 s"]),
    ],
)
def test_each_slide_ends_with_its_status_and_reason(
    cohort: tuple[Path, dict[str, SlideStatus]], slide_id: str, outcome: str, words: list[str]
) -> None:
    out, statuses = cohort
    status = statuses[slide_id]
    reason = " ".join(status.reasons)
    assert status.outcome == outcome, reason
    assert all(word in reason for word in words), reason
    assert json.loads((out / "slides" / f"{slide_id}.json").read_text())["outcome"] == outcome
    assert (out / "cells" / f"{slide_id}.parquet").exists() == (outcome != "failed")


def test_the_cohort_table_lists_every_slide(cohort: tuple[Path, dict[str, SlideStatus]]) -> None:
    out, statuses = cohort
    table = pl.read_parquet(out / "slides.parquet")
    assert {row["slide_id"]: row["outcome"] for row in table.iter_rows(named=True)} == {
        slide_id: status.outcome for slide_id, status in statuses.items()
    }


def test_a_crashing_reader_is_not_tried_again_by_the_next_driver(
    cohort: tuple[Path, dict[str, SlideStatus]],
) -> None:
    out, _ = cohort
    slide = out.parent / "crashes_at_open.tif"
    report = run(slide, out, reader="bad_readers:open_badly", max_attempts=2)
    assert "failed 2 times" in report.statuses[0].reasons[0]


@pytest.mark.parametrize("name", ["histolab_broken.svs", "unopenable.tiff", "unreadable.svs"])
def test_broken_fixtures_fail_with_a_reason(shared_data: Path, tmp_path: Path, name: str) -> None:
    report = run(shared_data / "slides" / "fixtures" / name, tmp_path / "out", OracleModel(tmp_path), mpp=0.5)
    (status,) = report.statuses
    assert status.outcome in ("failed", "done_empty")
    assert status.reasons and "Unexpected" not in status.reasons[0], status.reasons
    assert str(shared_data) not in " ".join(status.reasons)


def test_ids_of_a_manifest_reach_the_outputs_as_they_are_meant(tmp_path: Path) -> None:
    folder = tmp_path / "in put ö"
    truths = [make_slide(folder / f"{name}.tif", seed=seed, **SIZE) for seed, name in enumerate(("a", "b", "c", "d"))]
    lines = [
        "slide,slide_id,mpp",
        "a.tif,0012,",
        "b.tif,../../escape,",
        "c.tif,Ünï cödé,",
        "d.tif,twin,",
        "a.tif,twin,",
    ]
    shutil.copy(folder / "a.tif", folder / "e.tif")
    (folder / "list.csv").write_text("\n".join(lines).replace("a.tif,twin", "e.tif,twin"), encoding="utf-8")
    from cellmill.cohort.manifest import list_sources

    sources = list_sources([str(folder / "list.csv")])
    for source, truth in zip(sources, truths, strict=False):
        np.savez(folder / f"{source.slide_id}.truth.npz", labels=truth.labels, types=truth.types)
    out = tmp_path / "out"
    report = run(str(folder / "list.csv"), out, OracleModel(folder))
    outcomes = [(status.slide_id, status.outcome) for status in report.statuses]
    assert outcomes[0] == ("0012", "done")
    assert [outcome for _, outcome in outcomes] == ["done", "done", "done", "failed", "failed"]
    assert all("2 slides claim the id 'twin'" in status.reasons[0] for status in report.statuses[3:])
    assert pl.read_parquet(out / "slides.parquet")["slide_id"].dtype == pl.String
    assert "0012" in pl.read_parquet(out / "slides.parquet")["slide_id"].to_list()
    assert all(path.is_relative_to(out) for path in tmp_path.rglob("*.parquet"))


def test_a_slide_that_fills_the_disk_fails_and_the_others_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_slide(tmp_path / "in" / "fits.tif", **SIZE)
    make_slide(tmp_path / "in" / "full.tif", **SIZE)
    out, open_new = tmp_path / "out", objects._open_new

    def on_a_full_disk(path: Path):
        if "full.ome.zarr" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return open_new(path)

    monkeypatch.setattr(objects, "_open_new", on_a_full_disk)
    statuses = by_id(run(tmp_path / "in", out))
    assert statuses["fits"].outcome == "done"
    assert statuses["full"].outcome == "failed"
    assert "No space left" in statuses["full"].reasons[0] and "Free space" in statuses["full"].reasons[0]
    monkeypatch.undo()
    assert run(tmp_path / "in", out).all_done  # with space, the same command finishes


def test_an_output_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    make_slide(tmp_path / "in" / "a.tif", **SIZE)
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    with pytest.raises(OutputError, match="file"):
        run(tmp_path / "in", tmp_path / "file" / "out")


def test_of_two_drivers_one_gets_a_slide_and_both_do_others(tmp_path: Path) -> None:
    make_slide(tmp_path / "in" / "a.tif", **SIZE)
    make_slide(tmp_path / "in" / "b.tif", **SIZE)
    other = CellSet(tmp_path / "out")
    other.claim("a")
    try:
        statuses = by_id(run(tmp_path / "in", tmp_path / "out"))
    finally:
        other.close()
    assert statuses["b"].outcome == "done"
    assert "worked on by process" in statuses["a"].reasons[0]
    assert not (tmp_path / "out" / "slides" / "a.json").exists()
    assert run(tmp_path / "in", tmp_path / "out").all_done


def test_a_changed_file_is_refused_and_the_done_slide_stays(tmp_path: Path) -> None:
    make_slide(tmp_path / "in" / "a.tif", **SIZE)
    run(tmp_path / "in", tmp_path / "out")
    before = (tmp_path / "out" / "cells" / "a.parquet").read_bytes()
    make_slide(tmp_path / "in" / "a.tif", seed=9, **SIZE)
    report = run(tmp_path / "in", tmp_path / "out")
    assert "file has changed" in report.statuses[0].reasons[0]
    assert (tmp_path / "out" / "cells" / "a.parquet").read_bytes() == before


def test_a_bug_in_one_slide_does_not_stop_the_others(tmp_path: Path) -> None:
    make_slide(tmp_path / "in" / "a.tif", **SIZE)
    make_slide(tmp_path / "in" / "b.tif", **SIZE)
    (tmp_path / "in" / "a.truth.npz").write_bytes(b"no zip")
    progress = RecordedProgress()
    statuses = by_id(run(tmp_path / "in", tmp_path / "out", progress=progress))
    assert statuses["b"].outcome == "done"
    assert statuses["a"].outcome == "failed" and "Unexpected" in statuses["a"].reasons[0]
