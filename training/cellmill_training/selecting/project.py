"""A QuPath project of the chosen tiles, made without QuPath: each tile a locked annotation, its cells inside.

In: chosen tiles, their slides, and a cell set where there is one. Out: a project folder as `cellmill.export` writes it.
A tile's annotation has the class `To annotate`. Who has looked at all of it gives it the class `Complete`, and
import-annotations then takes what is inside as the whole truth; tiles that nobody came to claim nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from shapely.geometry import MultiPolygon, Polygon

from cellmill.export.features import CellFeatures, area_feature
from cellmill.export.objects import write_objects
from cellmill.export.project_files import PROJECT_NAME, write_classes, write_project, write_script
from cellmill.export.selection import CellSelection, read_selected
from cellmill.slides.opening import slide_file
from cellmill.staging.remote import is_remote
from cellmill.store.objects import ObjectStore
from cellmill_schemas.ontology import Ontology
from cellmill_training.corrections.objects import COMPLETE_CLASS, TO_ANNOTATE_CLASS
from cellmill_training.selecting.choosing import ChosenTile
from cellmill_training.selecting.slide_tiles import SlideTiles

__all__ = ["ProjectSource", "write_tile_project"]

_SCRIPT = "cellmill_import_objects.groovy"
_CLASSES: dict[str, tuple[int, int, int]] = {
    TO_ANNOTATE_CLASS: (255, 160, 0),
    COMPLETE_CLASS: (0, 160, 90),
    "Ignore*": (180, 180, 180),
}
_MARGIN_UM = 20.0
"""Cells this near to a tile come along: an outline's centre may lie inside where the cell's own lies outside."""

_STEPS = f"""This project holds the tiles that were chosen for annotation. It was made without QuPath: the tiles lie in
objects/ and are not in the images yet.

1. Open {PROJECT_NAME} in QuPath: its images open empty.
2. Automate > Project scripts > cellmill_import_objects, then Run > Run for project, and choose all images.
   Or without a window: QuPath script scripts/{_SCRIPT} -p {PROJECT_NAME} -s
3. In each tile (class "{TO_ANNOTATE_CLASS}") outline every nucleus and give it its class, correct those that are there,
   delete what is none. Draw annotations of class Ignore* around what nobody can tell.
4. Give a tile that is done the class {COMPLETE_CLASS}. Tiles left as they are claim nothing.
5. File > Export objects as GeoJSON, all objects, to corrections/<image name>.geojson, then import-annotations.
"""


@dataclass(frozen=True)
class ProjectSource:
    """Where cells and classes come from."""

    ontology: Ontology
    cells: ObjectStore | None
    """The cell set; None where tiles are annotated from nothing."""
    slides_with_cells: frozenset[str]


def write_tile_project(
    folder: Path,
    tiles: Sequence[ChosenTile],
    slides: Mapping[str, SlideTiles],
    source: ProjectSource,
    *,
    final_folder: Path,
) -> tuple[str, ...]:
    """Write the project; returns notes on what is missing in it.

    Args:
        folder: where to write; it is made.
        tiles: to annotate.
        slides: by id.
        source: cells and classes.
        final_folder: where the project will lie.
    """
    folder.mkdir(parents=True)
    by_slide: dict[str, list[ChosenTile]] = {}
    for tile in tiles:
        by_slide.setdefault(tile.slide_id, []).append(tile)
    remote = [slide_id for slide_id in by_slide if is_remote(slides[slide_id].url)]
    local = [slide_id for slide_id in by_slide if slide_id not in remote]
    images = [
        (slide_id, slide_id, slide_file(Path(slides[slide_id].url)).absolute(), {"cellmill slide": slide_id})
        for slide_id in local
    ]
    for slide_id, image in zip(local, write_project(folder, images, final_folder=final_folder), strict=True):
        _write_slide(folder / "objects" / image.entry_id, by_slide[slide_id], slides[slide_id], source)
    write_classes(folder, source.ontology, more=_CLASSES)
    write_script(folder, _SCRIPT)
    (folder / "READ_ME_FIRST.txt").write_text(_STEPS, encoding="utf-8")
    return tuple(
        f"{slide_id} lies at a URL, which a QuPath project cannot open: its tiles are in the list only."
        for slide_id in remote
    )


def _write_slide(folder: Path, tiles: Sequence[ChosenTile], slide: SlideTiles, source: ProjectSource) -> None:
    boxes = slide.boxes_level0_px()[[tile.row for tile in tiles]]
    areas = [_feature(tile, box, slide) for tile, box in zip(tiles, boxes, strict=True)]
    features = CellFeatures(slide.slide_id, source.ontology, "detections", slide.origin_level0_px)
    if source.cells is None or slide.slide_id not in source.slides_with_cells:
        write_objects(folder, (), features, areas=areas)
        return
    margin = np.array([_MARGIN_UM / slide.mpp[0], _MARGIN_UM / slide.mpp[1]])
    around = shapely.union_all(
        shapely.box(*(boxes[:, :2] - margin).T, *(boxes[:, 2:] + margin).T)  # pyright: ignore[reportArgumentType]
    )
    assert isinstance(around, Polygon | MultiPolygon)
    cells = read_selected(source.cells, slide.slide_id, CellSelection(within=around))
    write_objects(folder, cells, features, areas=areas)


def _feature(tile: ChosenTile, box: "np.ndarray[tuple[int], np.dtype[np.float64]]", slide: SlideTiles) -> str:
    """The tile as a locked annotation in the viewer's frame."""
    x0, y0, x1, y1 = (box - np.array(slide.origin_level0_px * 2)).round(2).tolist()
    column, row = slide.tiles[tile.row].tolist()
    measurements: dict[str, float] = {}
    for score in tile.scores:
        measurements[f"Probability of {score.cell_type}"] = round(score.probability, 4)
        measurements[f"BALD of {score.cell_type}"] = round(score.bald, 4)
    return area_feature(
        slide_id=slide.slide_id,
        name=f"Tile {column}, {row}: {', '.join(tile.reasons)}",
        class_name=TO_ANNOTATE_CLASS,
        color_rgb=_CLASSES[TO_ANNOTATE_CLASS],
        shape=shapely.box(x0, y0, x1, y1),
        measurements=measurements,
    )
