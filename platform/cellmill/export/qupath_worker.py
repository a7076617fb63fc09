"""The process that holds QuPath's Java virtual machine: one task, then it ends.

There is one virtual machine a process, it cannot be started again, and the memory of a slide's objects goes with it.
In: a task as JSON on standard input. Out: its answer as JSON in the file the task names. Whoever asks is
`cellmill.export.qupath`. paquo is imported here and nowhere else.

    create       a project with classes and images, no objects
    insert       areas and cells into one image
    annotations  an image's annotations as GeoJSON
"""

import json
import sys
from pathlib import Path
from typing import Any

from cellmill.export.insertion import insert_areas, insert_cells, java_classes, present_ids
from cellmill.export.project_files import AREA_CLASSES
from cellmill.export.selection import CellSelection, parse_where, read_selected
from cellmill.store.objects import ObjectStore
from cellmill_schemas.ontology import Ontology

__all__ = ["main"]


def main() -> int:
    """Do the task on standard input."""
    task: dict[str, Any] = json.loads(sys.stdin.read())
    _start_java()
    answer = {"create": _create, "insert": _insert, "annotations": _annotations}[task["do"]](task)
    Path(task["answer"]).write_text(json.dumps(answer), encoding="utf-8")
    return 0


def _start_java() -> None:
    import jpype  # pyright: ignore[reportMissingImports] - of the optional extra qupath
    import paquo.java  # type: ignore[import-not-found]  # noqa: F401 - starts the virtual machine

    try:
        # QuPath 0.5 leaves OpenSlide off until this is called; others have no such class or need no call.
        jpype.JClass("qupath.lib.images.servers.openslide.jna.OpenSlideLoader").tryToLoad()
    except Exception as error:  # noqa: BLE001 - Java's exceptions are not Python's
        sys.stderr.write(f"OpenSlide in QuPath: {error}\n")


def _create(task: dict[str, Any]) -> dict[str, Any]:
    from paquo.images import QuPathImageType  # type: ignore[import-not-found]
    from paquo.projects import QuPathProject  # type: ignore[import-not-found]

    # Mode 'w' would empty the folder, whatever is in it.
    project = QuPathProject(task["project"], mode="x")
    colors = _class_colors(Ontology.from_json(task["ontology"]))
    project.path_classes = [_path_class(name, color) for name, color in colors.items()]
    entry_ids: dict[str, str] = {}
    for image in task["images"]:
        added = project.add_image(image["path"], image_type=QuPathImageType.BRIGHTFIELD_H_E, return_list=True)
        if len(added) != 1:
            raise ValueError(
                f"QuPath sees {len(added)} images in the file of slide {image['slide_id']}; export it alone."
            )
        (entry,) = added
        entry.image_name = image["name"]
        for key, value in image["metadata"].items():
            entry.metadata[key] = value
        _save(entry)
        entry_ids[image["slide_id"]] = str(entry.entry_id)
    project.save(images=False)
    return {"entry_ids": entry_ids}


def _insert(task: dict[str, Any]) -> dict[str, Any]:
    from paquo.projects import QuPathProject  # type: ignore[import-not-found]

    project = QuPathProject(task["project"], mode="r+")
    entry = _entry(project, task["entry_id"])
    ontology = Ontology.from_json(task["ontology"])
    hierarchy, java = entry.hierarchy.java_object, java_classes()
    present = present_ids(hierarchy)
    num_areas = insert_areas(java, hierarchy, task["areas"], leave_out=present)
    num_cells = insert_cells(
        java,
        hierarchy,
        read_selected(ObjectStore(task["cells"]), task["slide_id"], _selection(task, ontology)),
        slide_id=task["slide_id"],
        ontology=ontology,
        path_classes=[_path_class(c.name, c.color_rgb).java_object for c in ontology.classes],
        origin_level0_px=tuple(task["origin_level0_px"]),
        kind=task["kind"],
        leave_out=present,
    )
    _save(entry)
    return {"num_areas": num_areas, "num_cells": num_cells}


def _annotations(task: dict[str, Any]) -> dict[str, Any]:
    from paquo.projects import QuPathProject  # type: ignore[import-not-found]

    project = QuPathProject(task["project"], mode="r")
    return {"features": _entry(project, task["entry_id"]).hierarchy.to_geojson()}


def _selection(task: dict[str, Any], ontology: Ontology) -> CellSelection:
    import shapely

    return CellSelection(
        where=parse_where(task["where"], ontology) if task["where"] else None,
        within=shapely.from_wkt(task["within_wkt"]) if task["within_wkt"] else None,  # pyright: ignore[reportArgumentType]
    )


def _class_colors(ontology: Ontology) -> dict[str, tuple[int, int, int]]:
    return {c.name: c.color_rgb for c in ontology.classes} | AREA_CLASSES


def _path_class(name: str, color: tuple[int, int, int]) -> Any:
    from paquo.classes import QuPathPathClass  # type: ignore[import-not-found]

    path_class = QuPathPathClass(name, color)
    path_class.color = color  # a class that exists keeps its colour otherwise
    return path_class


def _save(entry: Any) -> None:
    """Save one image, and only it: the project's own context manager would load and save all the others too.

    Raises:
        OSError: when the image cannot be reached; paquo would pass over it in silence.
    """
    if not entry.is_readable():
        raise OSError(f"QuPath cannot reach the image file of {entry.image_name}; nothing was saved.")
    entry.save()


def _entry(project: Any, entry_id: str) -> Any:
    for entry in project.images:
        if str(entry.entry_id) == entry_id:
            return entry
    raise ValueError(f"The project has no image with entry id {entry_id}.")


if __name__ == "__main__":
    raise SystemExit(main())
