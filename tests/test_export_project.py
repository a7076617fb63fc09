"""A QuPath project as plain files: what QuPath will find, that it appears whole, and that nothing there is lost."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from export_helpers import export_config, make_cell_set, read_parts
from oracle import Truth

from cellmill.export.folder import RECORD_NAME, publishing_folder, read_record, write_record
from cellmill.export.job import main
from cellmill.export.project_files import AREA_CLASSES, argb_of, read_project
from cellmill.export.run import export_cells
from cellmill_schemas.ontology import get_ontology

Made = tuple[Path, Path, dict[str, Truth]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_cell_set(tmp_path_factory.mktemp("made"))


@pytest.fixture(autouse=True)
def without_qupath(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAQUO_QUPATH_DIR", raising=False)


@pytest.fixture(scope="module")
def project(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # As a user does it: the job, with a folder name that holds a dot and a space.
    folder = tmp_path_factory.mktemp("exported") / "my project 1.0"
    environment = {key: value for key, value in os.environ.items() if key != "PAQUO_QUPATH_DIR"}
    job = Path(__file__).parents[1] / "jobs" / "export_qupath.py"
    words = ["--cells", str(made[1]), "--slides", str(made[0]), "--project", str(folder)]
    done = subprocess.run(
        [sys.executable, str(job), *words], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Left to do" in done.stdout and "cellmill_import_objects" in done.stdout
    return folder


def test_the_project_file_names_each_slide_and_no_reader(made: Made, project: Path) -> None:
    document = json.loads((project / "project.qpproj").read_text())
    assert document["uri"] == (project / "project.qpproj").as_uri()
    assert document["lastID"] == 2 and document["version"]
    for entry, slide_id in zip(document["images"], ["marked", "plain"], strict=True):
        assert entry["serverBuilder"]["uri"] == (made[0] / f"{slide_id}.tif").as_uri()
        assert "providerClassName" not in entry["serverBuilder"]  # with one, a failing reader is an error
        assert entry["metadata"]["cellmill slide"] == slide_id
        assert all(isinstance(value, str) for value in entry["metadata"].values())
    images = read_project(project)
    assert [image.name for image in images] == ["marked", "plain"]
    assert [image.path for image in images] == [made[0] / "marked.tif", made[0] / "plain.tif"]


def test_classes_have_the_colours_of_the_ontology(project: Path) -> None:
    document = json.loads((project / "classifiers" / "classes.json").read_text())
    colors = {entry["name"]: entry["color"] for entry in document["pathClasses"]}
    for cell_class in get_ontology("refined7").classes:
        unsigned = colors.pop(cell_class.name) & 0xFFFFFFFF
        assert unsigned >> 24 == 255
        assert tuple(unsigned >> shift & 255 for shift in (16, 8, 0)) == cell_class.color_rgb
    assert set(colors) == set(AREA_CLASSES)


def test_a_colour_is_a_signed_integer_as_java_has_it() -> None:
    assert argb_of((255, 255, 255)) == -1
    assert argb_of((0, 0, 0)) == -16777216
    assert argb_of((213, 60, 40)) == -2802648


def test_every_part_obeys_qupaths_rules_and_holds_each_cell_once(made: Made, project: Path) -> None:
    for image in read_project(project):
        features = read_parts(project / "objects" / image.entry_id)
        cells = [f for f in features if f["properties"]["objectType"] == "detection"]
        status = json.loads((made[1] / "slides" / f"{image.name}.json").read_text())
        assert len(cells) == status["num_cells"]
        assert len({f["id"] for f in features}) == len(features)


def test_the_record_says_where_everything_came_from(made: Made, project: Path) -> None:
    record = read_record(project)
    cellset = json.loads((made[1] / "cellset.json").read_text())
    del cellset["sealed_sha256"]  # the file's own
    assert record["cell_set"] == cellset
    assert record["cells"] == str(made[1])
    by_slide = {slide["slide_id"]: slide for slide in record["slides"]}
    for image in read_project(project):
        status = json.loads((made[1] / "slides" / f"{image.name}.json").read_text())
        assert by_slide[image.name]["entry_id"] == image.entry_id
        assert by_slide[image.name]["cells_sha256"] == status["cells_sha256"]
    on_disk = {path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file()}
    assert set(record["files"]) == on_disk - {RECORD_NAME}


def test_scripts_are_where_qupath_lists_them_and_say_what_is_left(project: Path) -> None:
    scripts = {path.name: path.read_text() for path in (project / "scripts").glob("*.groovy")}
    assert set(scripts) == {"cellmill_import_objects.groovy", "cellmill_segment_annotations.groovy"}
    assert "index.json" in scripts["cellmill_import_objects.groovy"]
    # The name stands for a token that only buildFilePath resolves.
    assert all(
        text.count("PROJECT_BASE_DIR") == text.count("buildFilePath(PROJECT_BASE_DIR") for text in scripts.values()
    )
    command = json.loads((project / "cellmill" / "command.json").read_text())["command"]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--annotations" in done.stdout
    assert "cellmill_import_objects" in (project / "READ_ME_FIRST.txt").read_text()


def test_an_export_is_replaced_only_when_asked(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    config = export_config(made[1], made[0], folder, slide_id="plain")
    export_cells(config)
    before = (folder / RECORD_NAME).stat().st_mtime_ns
    with pytest.raises(ValueError, match="--replace"):
        export_cells(config)
    assert (folder / RECORD_NAME).stat().st_mtime_ns == before
    export_cells(export_config(made[1], made[0], folder, slide_id="plain", replace=True, where="area_um2 > 1e9"))
    assert read_record(folder)["slides"][0]["num_cells"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["project"]


@pytest.mark.parametrize("work", ["new file", "changed file", "link"])
def test_work_done_in_a_project_is_never_replaced(made: Made, tmp_path: Path, work: str) -> None:
    folder = tmp_path / "project"
    export_cells(export_config(made[1], made[0], folder, slide_id="plain"))
    path = folder / ("project.qpproj" if work == "changed file" else "data/1/data.qpdata")
    path.parent.mkdir(parents=True, exist_ok=True)
    if work == "link":
        (tmp_path / "elsewhere").mkdir()
        path.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        path = tmp_path / "elsewhere" / "notes"
    path.write_text("a day of corrections")
    with pytest.raises(ValueError, match="worked on since"):
        export_cells(export_config(made[1], made[0], folder, slide_id="plain", replace=True))
    assert path.read_text() == "a day of corrections"


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_of_other_things_is_left_alone(made: Made, tmp_path: Path, replace: bool) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.doc").write_text("years of work")
    with pytest.raises(ValueError, match="holds things that no export wrote"):
        export_cells(export_config(made[1], made[0], tmp_path / "thesis", replace=replace))
    assert (tmp_path / "thesis" / "chapter1.doc").read_text() == "years of work"


def test_a_failed_export_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail() -> None:
        with publishing_folder(tmp_path / "out") as staging:
            (staging / "half").write_text("x")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_and_a_name_with_a_dot_are_fine(tmp_path: Path) -> None:
    (tmp_path / "a.b").mkdir()
    with publishing_folder(tmp_path / "a.b") as staging:
        (staging / "x").write_text("x")
        write_record(staging, {})
    assert sorted(path.name for path in (tmp_path / "a.b").iterdir()) == [RECORD_NAME, "x"]


def test_a_folder_that_filled_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def export() -> None:
        with publishing_folder(tmp_path / "out") as staging:
            (staging / "x").write_text("ours")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "x").write_text("theirs")

    with pytest.raises(ValueError, match="no export wrote"):
        export()
    assert (tmp_path / "out" / "x").read_text() == "theirs"


def test_what_cannot_be_exported_says_why(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*words: str) -> str:
        assert main(["--cells", str(made[1]), "--project", str(tmp_path / "out"), *words]) == 2
        return capsys.readouterr().err

    slides = ("--slides", str(made[0]))
    assert "not in it" in told(*slides, "--slide-id", "nobody")
    assert "no file of marked, plain" in told("--slides", str(made[0].parent / "elsewhere.svs"))
    assert "no condition" in told(*slides, "--where", "size > 3")
    assert "URL" in told("--slides", "memory://somewhere/plain.tif", "--slide-id", "plain")
    assert not (tmp_path / "out").exists()


def test_another_file_of_the_same_name_is_refused(made: Made, tmp_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "plain.tif").write_bytes((made[0] / "marked.tif").read_bytes())
    with pytest.raises(ValueError, match="not the one that was segmented"):
        export_cells(export_config(made[1], tmp_path / "slides", tmp_path / "out", slide_id="plain"))
    assert not (tmp_path / "out").exists()


def test_a_cell_set_of_a_region_file_says_that_areas_are_missing(made: Made, tmp_path: Path) -> None:
    from cohort_helpers import run

    ring = [[0, 0], [250, 0], [250, 250], [0, 250], [0, 0]]
    region = tmp_path / "region.geojson"
    region.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    run(made[0] / "plain.tif", tmp_path / "cells", tissue=str(region))
    config = export_config(tmp_path / "cells", made[0], tmp_path / "out", format="geojson")
    assert "give it as --tissue" in export_cells(config).notes[0]
    config = export_config(tmp_path / "cells", made[0], tmp_path / "out2", format="geojson", tissue=str(region))
    report = export_cells(config)
    assert report.notes == () and report.slides[0].num_areas == 1


def test_pseudonymized_slides_are_found_by_the_secret(tmp_path: Path) -> None:
    from cohort_helpers import run
    from oracle import make_slide

    from cellmill.cohort.manifest import list_sources

    make_slide(tmp_path / "slides" / "S22-4711.tif", width=400, height=300)
    (tmp_path / "key").write_text("0123456789abcdef0123456789abcdef")
    (tmp_path / "key").chmod(0o600)
    (source,) = list_sources([str(tmp_path / "slides")], secret=(tmp_path / "key").read_bytes())
    truth = tmp_path / "slides" / "S22-4711.truth.npz"
    truth.rename(tmp_path / "slides" / f"{source.slide_id}.truth.npz")
    run(tmp_path / "slides", tmp_path / "cells", pseudonymize=str(tmp_path / "key"))
    config = export_config(
        tmp_path / "cells", tmp_path / "slides", tmp_path / "out", format="geojson", pseudonymize=str(tmp_path / "key")
    )
    report = export_cells(config)
    assert [slide.slide_id for slide in report.slides] == [source.slide_id]
    assert not [path for path in (tmp_path / "out").rglob("*") if "4711" in path.name]
    assert "4711" not in (tmp_path / "out" / RECORD_NAME).read_text()


def test_files_have_the_rights_of_new_files(project: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((project / "project.qpproj").stat().st_mode) == 0o666 & ~mask
