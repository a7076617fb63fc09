"""Seams are right, not only stable: with a real network, where tiles end makes no difference to the cells."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import zarr
from cohort_helpers import run
from oracle import write_tiff

from cellmill.cohort.sources import NetworkModel
from cellmill.slides.opening import open_slide

NEAR_SEAM_PX = 8


def cells_and_mask(out: Path, slide_id: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids (n,), centres (n, 2: x, y) in px, and the mask (H, W) of a slide."""
    cells = pl.read_parquet(out / "cells" / f"{slide_id}.parquet").sort("mask_id")
    mask = zarr.open_group(out / "masks" / f"{slide_id}.ome.zarr", mode="r")["0"][:]
    centres = cells.select(pl.col("x_um") / 0.5, pl.col("y_um") / 0.5).to_numpy()
    return cells["mask_id"].to_numpy(), centres, np.asarray(mask)


def share_matched(ids: np.ndarray, mask: np.ndarray, other: np.ndarray, *, iou: float) -> float:
    """Share of the cells `ids` of `mask` that a cell of `other` covers with at least `iou`."""
    both = (mask > 0) & (other > 0)
    pairs, overlap = np.unique(np.stack([mask[both], other[both]]), axis=1, return_counts=True)
    area = dict(zip(*np.unique(mask, return_counts=True), strict=True))
    other_area = dict(zip(*np.unique(other, return_counts=True), strict=True))
    matched = {a for (a, b), n in zip(pairs.T, overlap, strict=True) if n >= iou * (area[a] + other_area[b] - n)}
    return len(matched.intersection(ids.tolist())) / len(ids)


def test_shifting_the_tiles_by_half_a_stride_changes_hardly_a_cell(shared_data: Path, tmp_path: Path) -> None:
    from cellmill.models.loading import load_model, packaged_models

    if "lite" not in packaged_models():
        pytest.skip("the package holds no weights of lite")
    lite = NetworkModel(load_model("lite"))
    stride = lite.geometry.stride_px
    reader = open_slide(shared_data / "slides" / "CMU-1-Small-Region.svs")
    pixels = reader.read_block(0, 0, 0, 2048, 2048)
    reader.close()
    shift = stride // 2
    padded = np.full((2048 + shift, 2048 + shift, 3), 255, np.uint8)
    padded[shift:, shift:] = pixels
    for name, image in (("plain", pixels), ("shifted", padded)):
        write_tiff(tmp_path / f"{name}.tif", image, mpp=(0.5, 0.5))
    slides = [str(tmp_path / "plain.tif"), str(tmp_path / "shifted.tif")]
    report = run(slides, tmp_path / "out", lite, tissue="none", field_px=4096)
    assert report.all_done, [status.reasons for status in report.statuses]
    ids, centres, mask = cells_and_mask(tmp_path / "out", "plain")
    _, moved, shifted = cells_and_mask(tmp_path / "out", "shifted")
    moved, shifted = moved - shift, shifted[shift:, shift:]

    # The rim of the cut-out sees white instead of tissue in one of the two.
    inside = np.all((centres > 64) & (centres < 2048 - 64), axis=1)
    assert inside.sum() > 800
    matched = share_matched(ids[inside], mask, shifted, iou=0.7)

    # The same places, once near a seam and once in the middle of tiles: tissue cancels out.
    near = lambda points, offset: np.any(np.abs((points + offset + 8) % stride - 8) < NEAR_SEAM_PX, axis=1)  # noqa: E731
    kept = [points[np.all((points > 64) & (points < 2048 - 64), axis=1)] for points in (centres, moved)]
    at_seams = near(kept[0], 0).sum() + near(kept[1], shift).sum()
    elsewhere = near(kept[1], 0).sum() + near(kept[0], shift).sum()
    assert matched >= 0.98
    assert 0.97 <= at_seams / elsewhere <= 1.03
