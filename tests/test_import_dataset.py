"""`import-dataset`: from a folder to a store and a table of counts; what cannot be used is named, with exit code 2."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from cellmill_training.datasets.counts import count_classes
from cellmill_training.datasets.job import ImportDatasetSettings, main
from cellmill_training.datasets.store import open_dataset


def _write_consep(folder: Path, *, num_tiles: int) -> None:
    """Tiles with one nucleus of each of three classes."""
    (folder / "Images").mkdir(parents=True)
    (folder / "Labels").mkdir()
    instances, types = np.zeros((30, 30)), np.zeros((30, 30))
    for number, kind in enumerate((2, 3, 5), start=1):
        instances[8 * number - 4 : 8 * number, 4:10], types[8 * number - 4 : 8 * number, 4:10] = number, kind
    for tile in range(num_tiles):
        cv2.imwrite(str(folder / "Images" / f"t{tile}.png"), np.full((30, 30, 3), 200, np.uint8))
        savemat(str(folder / "Labels" / f"t{tile}.mat"), {"inst_map": instances, "type_map": types})


def test_an_import_counts_classes_by_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write_consep(tmp_path / "consep", num_tiles=10)
    given = ["--format", "consep", "--data", str(tmp_path / "consep")]
    assert main([*given, "--out", str(tmp_path / "native")]) == 0
    dataset = open_dataset(tmp_path / "native")
    assert (dataset.ontology.name, dataset.name) == ("consep7", "native")
    counts = count_classes(dataset)
    assert counts["fibroblast"] == {"train": 7, "validation": 2, "test": 1}
    assert counts["muscle"] == {"train": 0, "validation": 0, "test": 0}
    said = " ".join(capsys.readouterr().out.split())
    assert "30 labels of origin dataset:consep" in said
    assert "No nucleus is known to be: other, malignant epithelial, muscle, endothelial." in said
    assert dataset.digest[:16] in said

    options = ["--ontology", "refined7", "--fractions", "0.5", "0.3", "0.2", "--name", "mine"]
    assert main([*given, "--out", str(tmp_path / "mapped"), *options]) == 0
    refined = open_dataset(tmp_path / "mapped")
    assert (refined.ontology.name, refined.name) == ("refined7", "mine")
    assert count_classes(refined)["lymphocyte or macrophage or neutrophil"] == {"train": 5, "validation": 3, "test": 2}
    assert count_classes(refined)["epithelial"]["train"] == 5


def test_the_sources_folds_can_be_kept(tmp_path: Path) -> None:
    _write_consep(tmp_path / "consep" / "Train", num_tiles=3)
    _write_consep(tmp_path / "consep" / "Test", num_tiles=1)
    for path in (tmp_path / "consep" / "Test").rglob("t0.*"):
        path.rename(path.with_stem("u0"))
    given = ["--format", "consep", "--data", str(tmp_path / "consep"), "--out", str(tmp_path / "d")]
    assert main([*given, "--folds", "train=train", "test=test"]) == 0
    assert open_dataset(tmp_path / "d").image_ids("test") == ("consep-u0",)


def test_synthetic_tissue_needs_no_data(tmp_path: Path) -> None:
    assert main(["--format", "synthetic", "--num-images", "2", "--out", str(tmp_path / "d")]) == 0
    assert open_dataset(tmp_path / "d").image_ids() == ("synthetic-0", "synthetic-1")


def test_data_that_cannot_be_used_end_in_one_line_and_no_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write_consep(tmp_path / "consep", num_tiles=3)
    (tmp_path / "consep" / "Labels" / "t1.mat").write_bytes(b"")
    out = tmp_path / "d"
    given = ["--data", str(tmp_path / "consep"), "--out", str(out)]
    assert main(["--format", "consep", *given]) == 2
    assert "t1.mat" in capsys.readouterr().err
    assert not list(out.glob("index/*"))
    assert (
        main(["--format", "consep", "--data", str(tmp_path / "consep"), "--out", str(out), "--ontology", "ikem3"]) == 2
    )
    assert "no mapping from 'consep7' to 'ikem3'" in capsys.readouterr().err
    assert main(["--format", "qupath", *given]) == 2
    assert "name the ontology" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"data": ""}, "--data must be the folder"),
        ({"out": ""}, "--out must be"),
        ({"fractions": ("0.7", "0.3")}, "--fractions must be three numbers"),
        ({"fractions": ("0.7", "0.2", "0.2")}, "sum to 1"),
        ({"folds": ("fold1",)}, "--folds must be pairs"),
        ({"folds": ("fold1=exam",)}, "got 'exam'"),
        ({"mpp": 40.0, "format": "dsb"}, "--mpp must be 0.05 to 5"),
        ({"mpp": 0.25, "format": "puma"}, "--mpp is for dsb and qupath; puma has its own"),
        ({"num_images": 0}, "--num-images"),
    ],
)
def test_settings_are_checked_before_anything_is_read(
    tmp_path: Path, change: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        ImportDatasetSettings(**{"data": str(tmp_path), "out": str(tmp_path / "d"), **change})  # pyright: ignore[reportArgumentType]


def test_an_ontology_of_ones_own_must_exist(tmp_path: Path) -> None:
    settings = ImportDatasetSettings(data=str(tmp_path), out=str(tmp_path / "d"), ontology="mine")
    with pytest.raises(ValueError, match=r"--ontology: No ontology is called 'mine'.*\.json"):
        settings.chosen_ontology()
