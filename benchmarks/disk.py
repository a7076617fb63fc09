"""Bytes a cell on disk: the committed table against the same cells and values as QuPath GeoJSON, gzipped.

The cells are those that `lite` finds on a real slide when there is one at hand (CELLMILL_TEST_DATA, or ../shared/data
beside the repository), else on a small synthetic one. They are committed many times over, side by side on one large
slide as a real one would hold them: a table of few cells has one row group that is not full. The GeoJSON is what QuPath
itself exports: one Feature a detection, outline in level-0 px, classification with colour, measurements by name; no
spaces, gzip at its usual level 6, and the same rounding as the table.
"""

import gzip
import json
import math
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import Row, Silence, Spread
from cellmill.cohort.config import SegmentCohortConfig
from cellmill.cohort.engine import serial_engine
from cellmill.cohort.run import run_cohort
from cellmill.cohort.sources import NetworkModel
from cellmill.grid import SlideGrid
from cellmill.models.loading import load_model
from cellmill.store.cellset import CellSet
from cellmill.store.identity import CellSetIdentity, read_identity
from cellmill.store.layout import cells_key
from cellmill.store.objects import ObjectStore
from cellmill.store.work import FieldCounts, SlideFacts
from cellmill_schemas.cells import ANCHOR_BITS, BBOX_TYPE, DECIMALS, GEOMETRY_TYPE, cell_schema
from cellmill_schemas.ontology import CellClass, Ontology

ROOT = Path(__file__).resolve().parents[1]
NUM_CELLS = 200_000
MAX_BYTES, MAX_SHARE = 130, 0.6
FIELD_PX = 4096

_VALUES = tuple(name for name in DECIMALS if name not in ("x_um", "y_um", "x_level0_px", "y_level0_px", "type_prob"))


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="cellmill-disk-") as folder:
        source, cells, grid, ontology = real_cells(Path(folder) / "real")
        table = commit_copies(Path(folder) / "copies", cells, grid=grid, ontology=ontology)
        metadata = pq.read_metadata(table)
        ours = table.stat().st_size / metadata.num_rows
        theirs = gzipped_bytes(pq.ParquetFile(table), ontology) / metadata.num_rows
        alone = Path(folder) / "real" / "out" / cells_key("real")
        rings = cells.column("geometry").combine_chunks().values
        details: dict[str, float | str] = {
            "source": source,
            "cells": float(metadata.num_rows),
            "vertices a ring (closed), mean": len(rings.values) / len(rings),
            "bytes a cell, that slide alone": alone.stat().st_size / cells.num_rows,
            "GeoJSON not gzipped": _plain_bytes(cells, ontology) / cells.num_rows,
        }
    details |= {f"column {name}": size for name, size in bytes_by_column(metadata).items()}
    share = ours / theirs
    return [
        Row(
            name="bytes per cell on disk",
            rival="the same cells and values as QuPath GeoJSON, gzip -6",
            ours=_once(ours),
            theirs=_once(theirs),
            unit="bytes",
            ratio=_once(share),
            aim=f"<= {MAX_BYTES}; ours / theirs <= {MAX_SHARE}",
            met=ours <= MAX_BYTES and share <= MAX_SHARE,
            details=details,
        )
    ]


def _once(value: float) -> Spread:
    """A count: the same in every repeat."""
    return Spread.of([value])


# ------------------------------------------------------------------------------------------------------- the cells


def real_cells(folder: Path) -> tuple[str, pa.Table, SlideGrid, Ontology]:
    """Cells that the packaged `lite` finds: where they come from, their table, the slide's grid, the ontology."""
    data = Path(os.environ.get("CELLMILL_TEST_DATA", ROOT.parent / "shared" / "data"))
    slide, source = data / "slides" / "HE_example.ome.tif", "a real slide, HE_example.ome.tif"
    if not slide.exists():
        slide, source = _synthetic_slide(folder), "a synthetic slide"
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "manifest.csv"
    manifest.write_text(f"slide,slide_id\n{slide},real\n", encoding="utf-8")
    config = SegmentCohortConfig(slides=(str(manifest),), out=str(folder / "out"), device="cpu")
    run_cohort(
        config,
        NetworkModel(load_model(config.model)),
        progress=Silence(),
        engine=serial_engine,
    )
    status = CellSet(folder / "out").status("real")
    assert status is not None
    assert status.mpp_x and status.mpp_y and status.target_mpp
    assert status.width_level0_px and status.height_level0_px
    grid = SlideGrid.of_slide(
        width_level0_px=status.width_level0_px,
        height_level0_px=status.height_level0_px,
        mpp_x=status.mpp_x,
        mpp_y=status.mpp_y,
        target_mpp=status.target_mpp,
    )
    ontology = read_identity(ObjectStore(folder / "out")).ontology
    return source, pq.read_table(folder / "out" / cells_key("real")), grid, ontology


def _synthetic_slide(folder: Path) -> Path:
    job = [sys.executable, str(ROOT / "jobs" / "make_synthetic_cohort.py"), "--out", str(folder / "cohort")]
    size = ("--num-slides", "1", "--width-mm", "1", "--height-mm", "1", "--seed", "3")
    subprocess.run([*job, *size], check=True, stdout=subprocess.DEVNULL)
    return folder / "cohort" / "slides" / "synthetic_0000.tif"


def commit_copies(folder: Path, cells: pa.Table, *, grid: SlideGrid, ontology: Ontology) -> Path:
    """Commit `NUM_CELLS` cells or more: copies of the slide side by side on one; returns the table's path."""
    side = math.ceil(math.sqrt(NUM_CELLS / cells.num_rows))
    large = SlideGrid(side * grid.width_px, side * grid.height_px, grid.scale_x, grid.scale_y, grid.target_mpp)
    rng = np.random.default_rng(0)
    places = [(column, row) for row in range(side) for column in range(side)]
    table = pa.concat_tables([_copy(cells, place, rng=rng, grid=grid, large=large) for place in places])
    mpp = grid.target_mpp / grid.scale_x, grid.target_mpp / grid.scale_y
    width, height = round(large.width_px * grid.scale_x), round(large.height_px * grid.scale_y)
    identity = CellSetIdentity("lite", "model", "config", {}, ontology, "benchmark")
    cell_set = CellSet(folder).create_or_open(identity)
    cell_set.claim("real")
    facts = SlideFacts("real", large, *mpp, width, height, "fingerprint")
    work = cell_set.begin_slide(facts, field_px=FIELD_PX, device_kind="cpu")
    assert work is not None
    anchor = table.column("mask_id").to_numpy().astype(np.int64) - 1
    fields = list(large.fields(field_px=FIELD_PX, halo_px=0))
    column, row = anchor % large.width_px // FIELD_PX, anchor // large.width_px // FIELD_PX
    blank = np.zeros((FIELD_PX, FIELD_PX), np.uint32)
    for field in fields:
        owned = table.filter(pa.array((column == field.column) & (row == field.row)))
        cell_set.write_part(work, field=field, cells=owned, core_mask=blank, counts=FieldCounts())
    cell_set.commit(work, planned=fields, elsewhere=FieldCounts())
    cell_set.close()
    return folder / cells_key("real")


def _copy(
    cells: pa.Table, place: tuple[int, int], *, rng: np.random.Generator, grid: SlideGrid, large: SlideGrid
) -> pa.Table:
    """The cells moved to a place on the large slide; values change places among cells, so that no run comes twice."""
    moved_px = np.array([place[0] * grid.width_px, place[1] * grid.height_px])
    moved = np.round(moved_px * [grid.scale_x, grid.scale_y]), moved_px * grid.target_mpp
    anchor = cells.column("mask_id").to_numpy().astype(np.int64) - 1
    x, y = anchor % grid.width_px + moved_px[0], anchor // grid.width_px + moved_px[1]
    anchor = y * large.width_px + x
    slide_hash = cells.column("cell_id").to_numpy() >> ANCHOR_BITS << ANCHOR_BITS
    schema = cell_schema(_ontology_of(cells))
    shuffled = cells.take(pa.array(rng.permutation(cells.num_rows)))
    columns: dict[str, pa.Array] = {name: shuffled.column(name).combine_chunks() for name in schema.names}
    for name, offset, decimals in (
        ("x_level0_px", moved[0][0], DECIMALS["x_level0_px"]),
        ("y_level0_px", moved[0][1], DECIMALS["y_level0_px"]),
        ("x_um", moved[1][0], DECIMALS["x_um"]),
        ("y_um", moved[1][1], DECIMALS["y_um"]),
    ):
        values = np.round(cells.column(name).to_numpy().astype(np.float64) + offset, decimals)
        columns[name] = pa.array(values.astype(np.float32))
    columns["mask_id"] = pa.array((anchor + 1).astype(np.uint64))
    columns["cell_id"] = pa.array(slide_hash | anchor)
    columns["geometry"], columns["bbox"] = _moved_outlines(cells, moved[0])
    return pa.table(columns).cast(schema)


def _ontology_of(cells: pa.Table) -> Ontology:
    names = cells.column("cell_type").chunk(0).dictionary.to_pylist()
    return Ontology("of the slide", tuple(CellClass(name, (0, 0, 0)) for name in names))


def _moved_outlines(cells: pa.Table, moved_level0_px: npt.NDArray[np.float64]) -> tuple[pa.Array, pa.Array]:
    geometry = cells.column("geometry").combine_chunks()
    rings = geometry.values
    points = rings.values
    x, y = (points.field(i).to_numpy() + moved_level0_px[i] for i in (0, 1))
    vertices = pa.StructArray.from_arrays([pa.array(x), pa.array(y)], fields=list(GEOMETRY_TYPE.value_type.value_type))
    rings = pa.ListArray.from_arrays(rings.offsets, vertices, type=GEOMETRY_TYPE.value_type)
    box = cells.column("bbox").combine_chunks()
    sides = [box.field(i).to_numpy() + np.float32(moved_level0_px[i % 2]) for i in range(4)]
    return (
        pa.ListArray.from_arrays(geometry.offsets, rings, type=GEOMETRY_TYPE),
        pa.StructArray.from_arrays([pa.array(side) for side in sides], fields=list(BBOX_TYPE)),
    )


# ----------------------------------------------------------------------------------------------------- the figures


def bytes_by_column(metadata: pq.FileMetaData) -> dict[str, float]:
    """Compressed bytes a cell of each column, the leaves of a nested one together, and of what is no column."""
    sizes: dict[str, float] = {}
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(index)
            name = chunk.path_in_schema.split(".")[0]
            sizes[name] = sizes.get(name, 0) + chunk.total_compressed_size / metadata.num_rows
    return sizes | {"(footer)": metadata.serialized_size / metadata.num_rows}


def gzipped_bytes(table: pq.ParquetFile, ontology: Ontology) -> int:
    """Size of the cells as one gzipped FeatureCollection."""
    with tempfile.TemporaryFile() as file:
        with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=6, mtime=0) as packed:
            packed.write(b'{"type":"FeatureCollection","features":[')
            separator = b""
            for batch in table.iter_batches(batch_size=10_000):
                for feature in features_of(pa.Table.from_batches([batch]), ontology):
                    packed.write(separator + _compact(feature))
                    separator = b","
            packed.write(b"]}")
        return file.tell()


def features_of(cells: pa.Table, ontology: Ontology) -> Iterator[dict[str, Any]]:
    """Each cell as QuPath exports a detection."""
    colours = {cell_class.name: list(cell_class.color_rgb) for cell_class in ontology.classes}
    for cell in cells.to_pylist():
        (ring,) = cell["geometry"]
        measured = {name: _rounded(cell[name], DECIMALS[name]) for name in ("x_um", "y_um", *_VALUES)}
        chances = zip(ontology.names, cell["type_prob"], strict=True)
        measured |= {f"prob_{name}": _rounded(value, DECIMALS["type_prob"]) for name, value in chances}
        measured |= {name: int(cell[name]) for name in ("touches_border", "exceeds_reach")}
        yield {
            "type": "Feature",
            "id": str(uuid.UUID(int=cell["cell_id"])),
            "geometry": {"type": "Polygon", "coordinates": [[[int(point["x"]), int(point["y"])] for point in ring]]},
            "properties": {
                "objectType": "detection",
                "classification": {"name": cell["cell_type"], "color": colours[cell["cell_type"]]},
                "measurements": measured,
            },
        }


def _plain_bytes(cells: pa.Table, ontology: Ontology) -> int:
    return sum(len(_compact(feature)) + 1 for feature in features_of(cells, ontology))


def _compact(feature: dict[str, Any]) -> bytes:
    return json.dumps(feature, separators=(",", ":")).encode()


def _rounded(value: float, decimals: int) -> float | int:
    rounded = round(value, decimals)
    return int(rounded) if rounded == int(rounded) else rounded
