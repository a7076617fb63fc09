"""New type heads from stored embeddings: right on cells they can tell apart, honest where they cannot, in seconds."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from cohort_helpers import run
from oracle import make_slide

from cellmill import open_cells
from cellmill.embedding.head import TypeHead
from cellmill.store.cellset import CellSet
from cellmill.store.embeddings import EmbeddingRecord, writing_embeddings
from cellmill.store.objects import ObjectStore
from cellmill.store.statuses import read_status
from cellmill.verify.cellset import verify_cellset
from cellmill_training.refit.fitting import cross_validate, fit_head
from cellmill_training.refit.job import main
from cellmill_training.refit.run import refit_types
from cellmill_training.refit.settings import RefitTypesSettings

NEW_TYPES = ("round", "spindle", "odd")


def new_type(cell_ids: np.ndarray) -> np.ndarray:
    """The truth of the tests: a type that nothing in the cell table tells."""
    return (cell_ids // 7) % 3


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slides whose vectors tell the new types apart."""
    folder = tmp_path_factory.mktemp("refit")
    for number in range(3):
        make_slide(folder / "slides" / f"s{number}.tif", seed=number, width=500, height=400)
    out = folder / "out"
    assert run(folder / "slides", out).all_done
    rng, store = np.random.default_rng(0), ObjectStore(out)
    for number in range(3):
        slide_id = f"s{number}"
        ids = np.sort(open_cells(out, slide_ids=[slide_id]).select("cell_id").collect().to_series().to_numpy())
        vectors = rng.normal(size=(len(ids), 6))
        vectors[:, :3] += 4 * np.eye(3)[new_type(ids)]
        status = read_status(store, slide_id)
        assert status is not None
        record = EmbeddingRecord(slide_id, "student", "m", "d", "", "layer", 4, 0.5, "cpu", "", status.cells_sha256)
        with writing_embeddings(store, record) as writer:
            writer.add(ids, vectors.astype(np.float16))
    return out


@pytest.fixture
def out(once: Path, tmp_path: Path) -> Path:
    shutil.copytree(once, tmp_path / "out")
    return tmp_path / "out"


def labels(out: Path, path: Path, *, every: int = 2, slides: tuple[str, ...] = ("s0", "s1", "s2")) -> Path:
    cells = open_cells(out, slide_ids=slides).select(pl.col("slide_id").cast(pl.String), "cell_id").collect()
    cells = cells.gather_every(every)
    kinds = [NEW_TYPES[kind] for kind in new_type(cells["cell_id"].to_numpy())]
    cells.with_columns(pl.Series("type", kinds)).write_csv(path)
    return path


def settings(out: Path, path: Path, **values: object) -> RefitTypesSettings:
    merged = {"name": "shapes", "ontology": "labels", **values}
    return RefitTypesSettings(cells=str(out), labels=str(path), **merged)  # type: ignore[arg-type]


def test_types_of_a_new_ontology_are_recovered_for_every_cell(out: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in sorted((out / "cells").iterdir())}
    found = refit_types(settings(out, labels(out, tmp_path / "labels.csv")))
    assert found.validated is not None and found.groups == "slides"
    assert found.validated.accuracy.low <= found.validated.accuracy.value <= found.validated.accuracy.high
    assert found.validated.balanced_accuracy.value > 0.95
    cells = open_cells(out, scores="retyped/shapes").collect()
    assert cells.height == open_cells(out).collect().height == found.num_cells
    wanted = [NEW_TYPES[kind] for kind in new_type(cells["cell_id"].to_numpy())]
    assert np.mean(np.array(wanted) == np.array(cells["cell_type"].cast(pl.String).to_list())) > 0.95
    assert set(cells["scored_by"]) == {"retyped/shapes"} and not cells["agrees"].any()
    assert np.allclose(cells["type_prob"].to_numpy().max(axis=1), cells["confidence"].to_numpy())
    round_ones = open_cells(out, scores="retyped/shapes", cell_types=["round"], min_confidence=0.5).collect()
    assert 0 < round_ones.height < cells.height
    assert {path: path.read_bytes() for path in sorted((out / "cells").iterdir())} == before
    assert verify_cellset(out).findings == ()


def test_the_same_labels_give_the_same_bytes_and_another_head_needs_leave(out: Path, tmp_path: Path) -> None:
    path = labels(out, tmp_path / "labels.csv")
    refit_types(settings(out, path))
    first = {item.name: item.read_bytes() for item in (out / "retyped" / "shapes").iterdir()}
    with pytest.raises(ValueError, match="--replace"):
        refit_types(settings(out, path))
    refit_types(settings(out, path, replace=True))
    assert {item.name: item.read_bytes() for item in (out / "retyped" / "shapes").iterdir()} == first


def test_corrections_of_a_pathologist_are_labels(out: Path, tmp_path: Path) -> None:
    cells = open_cells(out).select(pl.col("slide_id").cast(pl.String), "cell_id").collect()
    kinds = [("lymphocyte", "dead", "neutrophil")[kind] for kind in new_type(cells["cell_id"].to_numpy())]
    table = cells.with_columns(pl.Series("type_after", kinds), pl.lit("retyped").alias("change"))
    added = pl.DataFrame({"slide_id": ["s0"], "cell_id": [None], "type_after": ["dead"], "change": ["added"]})
    kept = table[:5].with_columns(pl.lit("epithelial").alias("type_after"), pl.lit("kept").alias("change"))
    (tmp_path / "corrections").mkdir()
    pl.concat([table[5:], kept, added.cast({"cell_id": pl.Int64})]).write_parquet(
        tmp_path / "corrections" / "corrections.parquet"
    )
    found = refit_types(settings(out, tmp_path / "corrections"))
    assert found.ontology.names == ("lymphocyte", "dead", "neutrophil")
    assert sum(found.counts.values()) == cells.height - 5
    assert found.present_accuracy is not None and found.present_accuracy < 0.4


@pytest.mark.parametrize(
    ("rows", "values", "message"),
    [
        ({"cell_id": [1, 2], "type": ["round", "odd"]}, {}, "no stored embedding, the first is 1"),
        ({"cell": [1], "type": ["round"]}, {}, "no column cell_id"),
        ({"cell_id": [1, 1], "type": ["round", "odd"]}, {}, "1 is \\['round', 'odd'\\]"),
        ({"cell_id": [1], "type": ["martian"]}, {"ontology": ""}, "does not have: martian"),
        (None, {"ontology": "refined8"}, "--ontology must be"),
        (None, {"ontology": ""}, "does not have: odd, round, spindle"),
        (None, {"min_cells": 10_000}, "round has"),
        (None, {"name": "../up"}, "--name"),
        (None, {"embedded_by": "teacher"}, "rescore_cohort --embeddings"),
    ],
)
def test_what_cannot_be_used_is_told_and_nothing_is_written(
    out: Path, tmp_path: Path, rows: dict[str, list[object]] | None, values: dict[str, object], message: str
) -> None:
    path = labels(out, tmp_path / "labels.csv")
    if rows is not None:
        pl.DataFrame(rows).write_csv(path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        refit_types(settings(out, path, **values))
    assert not (out / "retyped").exists()


def test_a_class_without_labels_is_refused_by_name(out: Path, tmp_path: Path) -> None:
    path = labels(out, tmp_path / "labels.csv")
    ontology = {
        "name": "shapes",
        "classes": [{"name": name, "color_rgb": [1, 2, 3], "synonyms": []} for name in (*NEW_TYPES, "absent")],
    }
    (tmp_path / "shapes.json").write_text(json.dumps(ontology))
    with pytest.raises(ValueError, match="absent has 0"):
        refit_types(settings(out, path, ontology=str(tmp_path / "shapes.json")))


def test_labels_of_one_slide_are_validated_over_blocks_and_it_is_said(out: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    path = labels(out, tmp_path / "labels.csv", every=1, slides=("s0",))
    flags = ["--cells", str(out), "--labels", str(path), "--name", "shapes", "--ontology", "labels"]
    assert main(flags) == 0
    assert "blocks of 200 um of the one slide" in capsys.readouterr().out
    assert main(flags) == 2
    assert "--replace" in capsys.readouterr().err


def test_a_changed_byte_or_a_lost_table_of_a_head_is_found(out: Path, tmp_path: Path) -> None:
    refit_types(settings(out, labels(out, tmp_path / "labels.csv")))
    for path in sorted((out / "retyped" / "shapes").iterdir()):
        content = path.read_bytes()
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        assert verify_cellset(out, with_content=False).findings, path.name
        path.unlink()
        assert verify_cellset(out, with_content=False).findings, path.name
        path.write_bytes(content)
    CellSet(out).forget("s1")
    assert not list((out / "retyped").rglob("s1*"))
    assert verify_cellset(out).findings == ()
    assert set(open_cells(out, scores="retyped/shapes").collect()["slide_id"]) == {"s0", "s2"}


def test_an_unknown_head_lists_those_there_are(out: Path, tmp_path: Path) -> None:
    refit_types(settings(out, labels(out, tmp_path / "labels.csv")))
    with pytest.raises(FileNotFoundError, match="there are: shapes"):
        open_cells(out, scores="retyped/other")
    with pytest.raises(ValueError, match="retyped/NAME"):
        open_cells(out, scores="martian")


def test_cross_validation_sees_nothing_of_its_groups() -> None:
    """Vectors that only tell which slide a cell is from are worth nothing on another slide."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(10), 60)
    classes = rng.integers(0, 2, 10)[groups]
    classes[::7] = 1 - classes[::7]
    vectors = rng.normal(size=(10, 12))[groups] + 0.01 * rng.normal(size=(600, 12))
    inside = cross_validate(vectors, classes, np.arange(600), num_classes=2, seed=0)
    across = cross_validate(vectors, classes, groups, num_classes=2, seed=0)
    assert inside.accuracy.value > 0.8
    assert across.accuracy.value < 0.75 and across.accuracy.high - across.accuracy.low > 0.15


def test_noise_is_worth_as_much_as_chance() -> None:
    rng = np.random.default_rng(1)
    classes, groups = rng.integers(0, 4, 2000), rng.integers(0, 8, 2000)
    found = cross_validate(rng.normal(size=(2000, 8)), classes, groups, num_classes=4, seed=0)
    assert found.balanced_accuracy.value == pytest.approx(0.25, abs=0.05)
    assert found.accuracy.low < found.accuracy.value < found.accuracy.high


def test_a_head_is_fitted_in_seconds_and_comes_back_from_its_bytes() -> None:
    rng = np.random.default_rng(2)
    classes = rng.integers(0, 5, 4000)
    vectors = rng.normal(size=(4000, 32)) + 1.5 * np.eye(5, 32)[classes]
    started = time.process_time()
    head, _ = fit_head(vectors, classes, rng.integers(0, 10, 4000), num_classes=5, seed=0)
    assert time.process_time() - started < 20
    again = TypeHead.from_bytes(head.to_bytes())
    assert np.array_equal(again.probabilities(vectors), head.probabilities(vectors))
    assert (head.probabilities(vectors).argmax(axis=1) == classes).mean() > 0.6
    with pytest.raises(ValueError, match="type head"):
        TypeHead(head.mean[:-1], head.deviation, head.weight, head.bias)
