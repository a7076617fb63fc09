"""Insertion through Java. Without QuPath a recording stand-in takes its place, which checks the order and arguments of
calls and nothing else: that QuPath understands them is checked by the tests marked `qupath`, where it is installed.
"""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_helpers import export_config, lattice_cell_set, make_cell_set

from cellmill.export.features import area_feature
from cellmill.export.insertion import JavaClasses, insert_areas, insert_cells
from cellmill.export.measurements import measurements_of
from cellmill.export.object_ids import cell_uuid
from cellmill.export.qupath import QuPathError, ask_qupath, qupath_is_present
from cellmill.export.run import export_cells
from cellmill.export.selection import CellSelection, read_selected
from cellmill.store.objects import ObjectStore
from cellmill_schemas.ontology import get_ontology

ONTOLOGY = get_ontology("refined7")


class StandIn:
    """A recording stand-in for Java objects: any call is written down, any attribute is another stand-in. It knows
    nothing of QuPath and proves nothing about it."""

    def __init__(self, calls: list[tuple[Any, ...]], name: str) -> None:
        self.calls, self.name = calls, name

    def __getattr__(self, name: str) -> "StandIn":
        return StandIn(self.calls, name)

    def __call__(self, *arguments: Any) -> "StandIn":
        self.calls.append((self.name, *arguments))
        return StandIn(self.calls, self.name)


class StandInList(list[Any]):
    """Java's ArrayList, as far as insertion uses it."""

    def add(self, item: Any) -> None:
        self.append(item)

    def size(self) -> int:
        return len(self)


def stand_in(calls: list[tuple[Any, ...]]) -> JavaClasses:
    names = ("ROIs", "PathObjects", "ImagePlane", "GsonTools", "PathAnnotationObject")
    return JavaClasses(
        **{name: StandIn(calls, name) for name in names},
        ArrayList=StandInList,
        UUID=lambda high, low: ("uuid", high, low),
        String=str,
        doubles=lambda values: values.tolist(),
    )


def insert(folder: Path, calls: list[tuple[Any, ...]], **settings: Any) -> tuple[int, list[Any]]:
    tissue = lattice_cell_set(folder, num_cells_across=4)
    batches = list(read_selected(ObjectStore(folder), "lattice", CellSelection()))
    cells = [row for batch in batches for row in batch.to_pylist()]
    assert len(cells) == tissue.cells_in(tissue.grid.box).num_rows
    settings = {"kind": "detections", "leave_out": set(), "origin_level0_px": (0, 0), **settings}
    number = insert_cells(
        stand_in(calls),
        StandIn(calls, "hierarchy"),
        batches,
        slide_id="lattice",
        ontology=ONTOLOGY,
        path_classes=[f"class {name}" for name in ONTOLOGY.names],
        **settings,
    )
    return number, cells


def test_stand_in_each_cell_is_one_object_and_all_are_added_by_one_call(tmp_path: Path) -> None:
    calls: list[tuple[Any, ...]] = []
    number, cells = insert(tmp_path / "cells", calls, origin_level0_px=(5, 7))
    names = [call[0] for call in calls]
    assert number == len(cells) == names.count("createDetectionObject") == names.count("createPolygonROI")
    assert names.count("addObjects") == 1 and names[-1] == "addObjects" and len(calls[-1][1]) == number
    polygon = next(call for call in calls if call[0] == "createPolygonROI")
    ring = cells[0]["geometry"][0]
    assert polygon[1] == [vertex["x"] - 5 for vertex in ring[:-1]]
    assert polygon[2] == [vertex["y"] - 7 for vertex in ring[:-1]]
    detection = next(call for call in calls if call[0] == "createDetectionObject")
    assert detection[2] == f"class {cells[0]['cell_type']}"


def test_stand_in_measurement_lists_are_closed_after_their_last_value(tmp_path: Path) -> None:
    calls: list[tuple[Any, ...]] = []
    number, _ = insert(tmp_path / "cells", calls)
    names = [call[0] for call in calls if call[0] in ("put", "close", "createDetectionObject")]
    size = len(measurements_of(ONTOLOGY))
    assert names == (["createDetectionObject"] + ["put"] * size + ["close"]) * number
    puts = [call for call in calls if call[0] == "put"][:size]
    assert [put[1] for put in puts] == [entry.name for entry in measurements_of(ONTOLOGY)]
    assert all(type(put[2]) is float for put in puts)


def test_stand_in_ids_are_javas_signed_longs(tmp_path: Path) -> None:
    calls: list[tuple[Any, ...]] = []
    _, cells = insert(tmp_path / "cells", calls)
    for call, cell in zip([call for call in calls if call[0] == "setID"], cells, strict=True):
        _, high, low = call[1]
        assert -(1 << 63) <= high < 1 << 63 and 0 < low < 1 << 63
        assert (high % (1 << 64)) << 64 | low == cell_uuid("lattice", cell["cell_id"]).int


def test_stand_in_cells_have_boundary_and_nucleus_and_what_is_there_stays_out(tmp_path: Path) -> None:
    calls: list[tuple[Any, ...]] = []
    store_id = str(cell_uuid("lattice", 1))
    number, cells = insert(tmp_path / "cells", calls, kind="cells", leave_out={store_id})
    assert number == len(cells)
    made = [call for call in calls if call[0] == "createCellObject"]
    assert all(call[1] is call[2] and call[4] is None for call in made)
    again: list[tuple[Any, ...]] = []
    known = {str(cell_uuid("lattice", cell["cell_id"])) for cell in cells[:3]}
    shutil.rmtree(tmp_path / "cells")
    assert insert(tmp_path / "cells", again, leave_out=known)[0] == number - 3


def test_stand_in_areas_go_through_qupaths_own_reader(tmp_path: Path) -> None:
    import shapely

    feature = area_feature(
        slide_id="a",
        name="Analysed",
        class_name="Analysed area",
        color_rgb=(1, 2, 3),
        shape=shapely.box(0, 0, 5, 5),
        measurements={},
    )
    calls: list[tuple[Any, ...]] = []
    assert insert_areas(stand_in(calls), StandIn(calls, "hierarchy"), [feature], leave_out=set()) == 1
    assert [call[0] for call in calls if call[0] in ("fromJson", "addObjects")] == ["fromJson", "addObjects"]
    assert json.loads(next(call for call in calls if call[0] == "fromJson")[1])["properties"]["isLocked"]


# ------------------------------------------------------------------------------------------- Java without QuPath

_ASK_JAVA = """
import json, sys, jpype
jpype.startJVM(convertStrings=False)
high, low = json.loads(sys.argv[1])
doubles = jpype.JArray(jpype.JDouble)
import numpy as np
values = np.arange(10.0)[2:5]
items = jpype.JClass("java.util.ArrayList")()
items.add(jpype.JClass("java.util.UUID")(high, low))
print(json.dumps([str(items.get(0).toString()), list(map(float, doubles(values))), int(items.size())]))
"""


@pytest.mark.skipif(find_spec("jpype") is None, reason="jpype is not installed (extra qupath)")
@pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java on this machine")
def test_java_itself_makes_the_same_uuid_and_arrays() -> None:
    wanted = cell_uuid("a slide", (1 << 62) + 12345)
    high = wanted.int >> 64
    words = json.dumps([high - (1 << 64) if high >> 63 else high, wanted.int % (1 << 64)])
    done = subprocess.run([sys.executable, "-c", _ASK_JAVA, words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [str(wanted), [2.0, 3.0, 4.0], 1]


def test_a_qupath_that_fails_says_its_last_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PAQUO_QUPATH_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="PAQUO_QUPATH_DIR"):
        qupath_is_present()
    monkeypatch.setenv("PAQUO_QUPATH_DIR", str(tmp_path))  # a folder, and no QuPath in it
    with pytest.raises(QuPathError, match="could not create"):
        ask_qupath({"do": "create", "project": "x", "ontology": {}, "images": []})


# --------------------------------------------------------------------------------------------------- QuPath itself

needs_qupath = pytest.mark.skipif(
    not os.environ.get("PAQUO_QUPATH_DIR"), reason="QuPath is not installed: PAQUO_QUPATH_DIR is not set"
)


@pytest.mark.qupath
@needs_qupath
@pytest.mark.parametrize("kind", ["detections", "cells"])
def test_qupath_holds_every_cell_with_its_class_and_id(tmp_path: Path, kind: str) -> None:
    slides, cells, _ = make_cell_set(tmp_path)
    report = export_cells(export_config(cells, slides, tmp_path / "project", as_=kind))
    assert report.left_to_do == ()
    done = subprocess.run(
        [sys.executable, "-c", _ASK_QUPATH, str(tmp_path / "project" / "project.qpproj")],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    for slide in report.slides:
        image = found[slide.slide_id]
        assert (image["cells"], image["areas"]) == (slide.num_cells, slide.num_areas)
        table = read_selected(ObjectStore(cells), slide.slide_id, CellSelection())
        ids = np.concatenate([batch.column("cell_id").to_numpy() for batch in table])
        assert set(image["ids"]) >= {str(cell_uuid(slide.slide_id, int(cell_id))) for cell_id in ids}
        assert image["readable"]


_ASK_QUPATH = """
import json, sys
from paquo.projects import QuPathProject
answer = {}
project = QuPathProject(sys.argv[1], mode="r")
readable = project.is_readable()
for image in project.images:
    hierarchy = image.hierarchy
    answer[image.image_name] = {
        "cells": len(hierarchy.detections),
        "areas": len(hierarchy.annotations),
        "ids": [str(item.getID().toString()) for item in hierarchy.java_object.getAllObjects(False)],
        "readable": all(readable.values()),
    }
print(json.dumps(answer))
"""


@pytest.mark.qupath
@needs_qupath
def test_qupath_reads_ids_of_what_is_there(tmp_path: Path) -> None:

    slides, cells, _ = make_cell_set(tmp_path)
    export_cells(export_config(cells, slides, tmp_path / "project", slide_id="plain"))
    task = {"do": "annotations", "project": str(tmp_path / "project" / "project.qpproj"), "entry_id": "1"}
    features = ask_qupath(task)["features"]
    assert [feature["properties"]["isLocked"] for feature in features] == [True]
