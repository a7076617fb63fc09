"""The exporter and QuPath's process against a recording stand-in for paquo: the order of tasks, modes and saves. It
knows nothing of QuPath and proves nothing about it; that is for the tests marked `qupath` in test_export_insertion.
"""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from export_helpers import export_config, make_cell_set
from test_export_insertion import StandIn, stand_in

import cellmill.export.qupath_worker as worker
import cellmill.export.run as run_module
from cellmill.export.folder import read_record
from cellmill.export.run import export_cells

Calls = list[tuple[Any, ...]]


class StandInEntry:
    """paquo's image entry, as far as the worker uses it."""

    def __init__(self, calls: Calls, entry_id: str, path: str) -> None:
        self.calls, self.entry_id, self.path = calls, entry_id, path
        self.image_name, self.metadata = "", {}
        self.hierarchy = SimpleNamespace(java_object=StandInHierarchy(calls), to_geojson=list)

    def is_readable(self) -> bool:
        return Path(self.path).is_file()

    def save(self) -> None:
        self.calls.append(("save", self.entry_id))


class StandInHierarchy(StandIn):
    """QuPath's hierarchy, which holds nothing yet."""

    def __init__(self, calls: Calls) -> None:
        super().__init__(calls, "hierarchy")

    def getAllObjects(self, with_root: bool) -> list[Any]:  # noqa: N802 - Java's name
        return []


def use_stand_in(monkeypatch: pytest.MonkeyPatch, calls: Calls) -> None:
    """Put the stand-in in paquo's place, and the worker in this process."""
    entries: dict[str, list[StandInEntry]] = {}

    class Project:
        def __init__(self, path: str, mode: str) -> None:
            calls.append(("project", mode))
            assert mode != "w"
            if mode == "x":
                Path(path).write_text(json.dumps({"uri": "file:///elsewhere", "images": []}))
            self.path, self.images, self.path_classes = path, entries.setdefault(path, []), []

        def add_image(self, path: str, *, image_type: Any, return_list: bool) -> list[StandInEntry]:
            calls.append(("add_image", Path(path).name, image_type))
            self.images.append(StandInEntry(calls, str(len(self.images) + 1), path))
            return self.images[-1:]

        def save(self, *, images: bool) -> None:
            calls.append(("save project", images))
            Path(f"{self.path}.backup").write_text("{}")

    class PathClass:
        def __init__(self, name: str, color: Any) -> None:
            self.name, self.color, self.java_object = name, None, f"class {name}"

    modules = {
        "paquo.projects": {"QuPathProject": Project},
        "paquo.images": {"QuPathImageType": SimpleNamespace(BRIGHTFIELD_H_E="H&E")},
        "paquo.classes": {"QuPathPathClass": PathClass},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(worker, "java_classes", lambda: stand_in(calls))
    tasks = {"create": worker._create, "insert": worker._insert, "annotations": worker._annotations}

    def ask(task: dict[str, Any]) -> dict[str, Any]:
        calls.append(("task", task["do"]))
        return json.loads(json.dumps(tasks[task["do"]](json.loads(json.dumps(task)))))

    monkeypatch.setattr(run_module, "ask_qupath", ask)
    monkeypatch.setattr(run_module, "qupath_is_present", lambda: True)


def test_stand_in_one_process_creates_and_one_a_slide_fills(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: Calls = []
    use_stand_in(monkeypatch, calls)
    slides, cells, _ = make_cell_set(tmp_path)
    report = export_cells(export_config(cells, slides, tmp_path / "project", where="confidence > 0.5"))
    assert report.left_to_do == ()
    told = [call for call in calls if call[0] in ("task", "project", "add_image", "addObjects", "save", "save project")]
    assert [call[:2] if call[0] != "addObjects" else call[0] for call in told] == [
        ("task", "create"),
        ("project", "x"),
        ("add_image", "marked.tif"),
        ("save", "1"),
        ("add_image", "plain.tif"),
        ("save", "2"),
        ("save project", False),
        ("task", "insert"),
        ("project", "r+"),
        "addObjects",
        "addObjects",
        ("save", "1"),
        ("task", "insert"),
        ("project", "r+"),
        "addObjects",
        "addObjects",
        ("save", "2"),
    ]
    added = [len(call[1]) for call in calls if call[0] == "addObjects"]
    assert added == [2, report.slides[0].num_cells, 1, report.slides[1].num_cells]
    record = read_record(tmp_path / "project")
    assert [slide["entry_id"] for slide in record["slides"]] == ["1", "2"]
    project = json.loads((tmp_path / "project" / "project.qpproj").read_text())
    assert project["uri"] == (tmp_path / "project" / "project.qpproj").as_uri()
    assert not (tmp_path / "project" / "project.qpproj.backup").exists()


def test_stand_in_an_image_out_of_reach_is_an_error_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: Calls = []
    use_stand_in(monkeypatch, calls)
    slides, cells, _ = make_cell_set(tmp_path)
    monkeypatch.setattr(StandInEntry, "is_readable", lambda self: False)
    with pytest.raises(OSError, match="cannot reach"):
        export_cells(export_config(cells, slides, tmp_path / "project"))
    assert not (tmp_path / "project").exists()
