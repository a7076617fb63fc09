"""Looking at a cell set: the region shown has most to see, and outlines lie on the pixels they belong to."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cellmill.overlay import OverlayRegion, busiest_region, draw_overlay
from cellmill.show import ShowCellsConfig
from cellmill.synthetic.slide import SyntheticSlide
from cellmill.synthetic.slide_writer import write_slide
from cellmill_schemas.ontology import get_ontology


def test_a_mixed_region_goes_before_a_crowd_of_one_type() -> None:
    crowd = [(10.0 + k, 10.0, "lymphocyte") for k in range(30)]
    mixed = [(1010.0 + k, 510.0, name) for k in range(8) for name in ("neoplastic", "lymphocyte", "connective")]
    cells = pl.DataFrame(crowd + mixed, schema=["x_um", "y_um", "cell_type"], orient="row")
    region = busiest_region(cells, side_um=100.0)
    assert region.x_um <= 1010 < region.x_um + 100
    assert region.y_um <= 510 < region.y_um + 100


def test_without_cells_the_corner_is_shown() -> None:
    empty = pl.DataFrame(schema={"x_um": pl.Float32, "y_um": pl.Float32, "cell_type": pl.String})
    assert busiest_region(empty, side_um=50.0) == OverlayRegion(0.0, 0.0, 50.0)


def test_an_outline_is_drawn_where_its_cell_is(tmp_path: Path) -> None:
    slide = SyntheticSlide.draw(1, width_mm=0.2, height_mm=0.15, mpp=0.5)
    write_slide(slide, tmp_path / "a.tif", truth_folder=tmp_path / "truth")
    square = [{"x": x, "y": y} for x, y in ((100, 100), (140, 100), (140, 140), (100, 140), (100, 100))]
    cells = pl.DataFrame(
        {"x_um": [60.0], "y_um": [60.0], "cell_type": ["neoplastic"], "geometry": [[square]]},
    )
    region = OverlayRegion(25.0, 25.0, 50.0)
    ontology = get_ontology("refined7")
    with_cell = draw_overlay(tmp_path / "a.tif", cells, ontology, region, mpp=(0.5, 0.5))
    without = draw_overlay(tmp_path / "a.tif", cells.clear(), ontology, region, mpp=(0.5, 0.5))
    changed = np.argwhere((with_cell != without).any(axis=2)[:200])
    # Level-0 px 100..140 are 50..70 um: 25..45 um into the region, 100..180 px of the picture.
    assert abs(changed.min(axis=0) - 100).max() <= 1
    assert abs(changed.max(axis=0) - 180).max() <= 1


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="--out"):
        ShowCellsConfig(cells="c", slides=("s",))
    with pytest.raises(ValueError, match="--y-um"):
        ShowCellsConfig(cells="c", slides=("s",), out="o.png", x_um=1.0)
