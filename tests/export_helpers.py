"""Cell sets to export: small ones from real runs over known slides, and large ones of made-up cells."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from cohort_helpers import run
from oracle import Truth, make_slide, write_tiff

from cellmill.export.config import ExportConfig
from cellmill.export.geojson_rules import check_file
from cellmill.grid import Box, SlideGrid
from cellmill.store.cellset import CellSet
from cellmill.store.identity import CellSetIdentity
from cellmill.store.testing import LatticeTissue
from cellmill.store.work import FieldCounts, SlideFacts
from cellmill_schemas.ontology import get_ontology


def make_cell_set(folder: Path, **settings: Any) -> tuple[Path, Path, dict[str, Truth]]:
    """Two slides, one with glass, a pen mark and a blurred corner, and the cell set of a run over them."""
    slides, out = folder / "slides", folder / "cells"
    truth = {
        "plain": make_slide(slides / "plain.tif", width=700, height=500),
        "marked": make_slide(slides / "marked.tif", width=1300, height=900, seed=1, glass_from_x=1000),
    }
    _mark(slides / "marked.tif")
    report = run(slides, out, **settings)
    assert report.all_done, [status.reasons for status in report.statuses]
    return slides, out, truth


def _mark(path: Path) -> None:
    """Blue ink over three tiles' cores."""
    pixels = tifffile.imread(path)
    pixels[256:384, 0:384] = (20, 60, 190)
    write_tiff(path, pixels, mpp=(0.5, 0.5))


def export_config(cells: Path, slides: Path | None, project: Path, **settings: Any) -> ExportConfig:
    """Settings of an export."""
    given = () if slides is None else (str(slides),)
    return ExportConfig(cells=str(cells), slides=given, project=str(project), **settings)


def read_parts(folder: Path) -> list[dict[str, Any]]:
    """Features of all parts of an index, after every file passed QuPath's rules."""
    index = json.loads((folder / "index.json").read_text())
    features: list[dict[str, Any]] = []
    for name in index["parts"]:
        assert check_file(folder / name) == []
        features += json.loads(gzip.decompress((folder / name).read_bytes()))["features"]
    return features


def lattice_cell_set(out: Path, *, num_cells_across: int, slide_id: str = "lattice") -> LatticeTissue:
    """A cell set of one slide with `num_cells_across` squared made-up cells, written field by field."""
    size = 24 * num_cells_across
    grid = SlideGrid(size, size, scale_x=2.0, scale_y=2.0, target_mpp=0.5)
    tissue = LatticeTissue(slide_id, grid, Box(0, 0, size, size))
    settings = {"target_mpp": 0.5, "tissue": "none", "reader": "cellmill.slides.opening:open_slide", "tile_px": 256}
    identity = CellSetIdentity("lite", "m", "c", settings | {"margin_px": 32}, get_ontology("refined7"), "0.1.0")
    cell_set = CellSet(out).create_or_open(identity)
    cell_set.claim(slide_id)
    facts = SlideFacts(slide_id, grid, 0.25, 0.25, 2 * size, 2 * size, "f")
    work = cell_set.begin_slide(facts, field_px=2048, device_kind="cpu")
    assert work is not None
    fields = list(grid.fields(field_px=2048, halo_px=64))
    for field in fields:
        core = field.core.clipped(grid.box)
        mask = np.zeros((field.core.height, field.core.width), np.uint32)
        cells = tissue.cells_in(core)
        cell_set.write_part(
            work, field=field, cells=cells, core_mask=mask, counts=FieldCounts(num_tiles=1, analysed_px=core.area)
        )
    cell_set.commit(work, planned=fields, elsewhere=FieldCounts())
    cell_set.close()
    return tissue
