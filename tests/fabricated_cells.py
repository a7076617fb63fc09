"""Cell sets with cells where a test wants them, written through the store like any other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from cellmill.grid import SlideGrid
from cellmill.store.cellset import CellSet
from cellmill.store.identity import CellSetIdentity
from cellmill.store.work import FieldCounts, SlideFacts
from cellmill_schemas.cells import ANCHOR_BITS, BBOX_TYPE, DECIMALS, GEOMETRY_TYPE, cell_schema
from cellmill_schemas.ontology import Ontology, get_ontology
from cellmill_schemas.slides import SlideStatus

REFINED7 = get_ontology("refined7")
MPP = 0.5


@dataclass(frozen=True)
class PlacedCells:
    """Cells of a slide of the given size: where, of what type, how sure."""

    xy_um: np.ndarray  # (n, 2)
    types: Sequence[int] | np.ndarray  # (n,)
    size_um: tuple[float, float] = (1000.0, 800.0)
    confidence: np.ndarray | float = 0.9

    @property
    def grid(self) -> SlideGrid:
        return SlideGrid(round(self.size_um[0] / MPP), round(self.size_um[1] / MPP), 1.0, 1.0, MPP)


def random_cells(seed: int, number: int, *, size_um: tuple[float, float] = (1000.0, 800.0)) -> PlacedCells:
    """Cells anywhere but at the rim, of types with unequal shares."""
    rng = np.random.default_rng(seed)
    xy_um = rng.uniform(5, np.array(size_um) - 5, (number, 2))
    shares = np.array([30, 20, 25, 4, 12, 5, 4]) / 100
    return PlacedCells(xy_um, rng.choice(7, number, p=shares), size_um, rng.uniform(0.4, 1.0, number))


def write_cell_set(
    url: str | Path,
    slides: Mapping[str, PlacedCells],
    *,
    failed: Mapping[str, str] | None = None,
    ontology: Ontology = REFINED7,
) -> CellSet:
    """Commit the slides one by one; those in `failed` get a status with that reason."""
    cell_set = CellSet(url).create_or_open(CellSetIdentity("fabricated", "m", "c", {}, ontology, "0.1.0"))
    for slide_id, placed in slides.items():
        _commit(cell_set, slide_id, placed, ontology)
    for slide_id, reason in (failed or {}).items():
        cell_set.write_status(SlideStatus(slide_id=slide_id, outcome="failed", reasons=(reason,)))
    cell_set.refresh_slides_table()
    cell_set.close()
    return cell_set


def _commit(cell_set: CellSet, slide_id: str, placed: PlacedCells, ontology: Ontology) -> None:
    grid = placed.grid
    field_px = 256 * -(-max(grid.width_px, grid.height_px) // 256)
    (field,) = grid.fields(field_px=field_px, halo_px=64)
    facts = SlideFacts(slide_id, grid, MPP, MPP, grid.width_px, grid.height_px, f"fingerprint of {slide_id}")
    cell_set.claim(slide_id)
    work = cell_set.begin_slide(facts, field_px=field_px, device_kind="cpu")
    assert work is not None
    cells = table_of(slide_id, placed, ontology)
    mask = np.zeros((field_px, field_px), np.uint32)
    anchors = cells["mask_id"].to_numpy().astype(np.int64) - 1
    mask[anchors // grid.width_px, anchors % grid.width_px] = anchors + 1
    counts = FieldCounts(num_tiles=1, analysed_px=grid.box.area)
    cell_set.write_part(work, field=field, cells=cells, core_mask=mask, counts=counts)
    cell_set.commit(work, planned=[field], elsewhere=FieldCounts())


def table_of(slide_id: str, placed: PlacedCells, ontology: Ontology) -> pa.Table:
    """The cells as octagons of 4 um around their centres; of several in one pixel the first stays."""
    grid = placed.grid
    xy_px = np.floor(np.asarray(placed.xy_um) / MPP).astype(np.int64).reshape(-1, 2)
    anchor, kept = np.unique(xy_px[:, 1] * grid.width_px + xy_px[:, 0], return_index=True)
    x, y = (np.asarray(placed.xy_um)[kept] / MPP).T if len(kept) else np.zeros((2, 0))
    types = np.asarray(placed.types, np.int8)[kept]
    number = len(kept)
    sure = np.broadcast_to(placed.confidence, (len(xy_px),))[kept].astype(np.float64)
    probabilities = np.repeat((1 - sure)[:, None] / (len(ontology) - 1), len(ontology), axis=1)
    probabilities[np.arange(number), types] = sure
    turn = 2 * np.pi * np.arange(9) / 8
    ring_x = np.round(x[:, None] + 8 * np.cos(turn)).reshape(-1)
    ring_y = np.round(y[:, None] + 8 * np.sin(turn)).reshape(-1)
    vertices = pa.StructArray.from_arrays([ring_x, ring_y], fields=list(GEOMETRY_TYPE.value_type.value_type))
    rings = pa.ListArray.from_arrays(np.arange(0, 9 * number + 1, 9, np.int32), vertices, type=GEOMETRY_TYPE.value_type)
    geometry = pa.ListArray.from_arrays(np.arange(number + 1, dtype=np.int32), rings, type=GEOMETRY_TYPE)
    sides = [np.round(x - 8), np.round(y - 8), np.round(x + 8), np.round(y + 8)]
    bbox = pa.StructArray.from_arrays([pa.array(side.astype(np.float32)) for side in sides], fields=list(BBOX_TYPE))
    floats = {
        "x_um": x * MPP,
        "y_um": y * MPP,
        "x_level0_px": x,
        "y_level0_px": y,
        "confidence": probabilities.max(axis=1, initial=0),
        "detection_prob": np.full(number, 0.95),
        "area_um2": np.full(number, 50.0),
        "perimeter_um": np.full(number, 25.1),
        "major_axis_um": np.full(number, 8.0),
        "minor_axis_um": np.full(number, 8.0),
        "eccentricity": np.zeros(number),
        "solidity": np.ones(number),
        "hematoxylin_od_mean": np.full(number, 0.8),
        "eosin_od_mean": np.full(number, 0.3),
    }
    schema = cell_schema(ontology)
    flat = pa.array(np.round(probabilities, DECIMALS["type_prob"]).astype(np.float32).reshape(-1))
    columns: dict[str, pa.Array] = {
        name: pa.array(np.round(values, DECIMALS[name]).astype(np.float32)) for name, values in floats.items()
    }
    columns |= {
        "slide_id": pa.DictionaryArray.from_arrays(pa.array(np.zeros(number, np.int32)), pa.array([slide_id])),
        "cell_id": pa.array((4711 << ANCHOR_BITS) | anchor),
        "mask_id": pa.array((anchor + 1).astype(np.uint64)),
        "cell_type": pa.DictionaryArray.from_arrays(pa.array(types), pa.array(ontology.names)),
        "type_prob": pa.FixedSizeListArray.from_arrays(flat, type=schema.field("type_prob").type),
        "touches_border": pa.array(np.zeros(number, bool)),
        "exceeds_reach": pa.array(np.zeros(number, bool)),
        "geometry": geometry,
        "bbox": bbox,
    }
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)
