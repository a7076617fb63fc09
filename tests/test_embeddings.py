"""Embeddings: the network's features averaged over a cell's own pixels, beside the cell tables and never in them."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import zarr
from cohort_helpers import run
from embedding_helpers import FeatureOracle, PlaceSource
from oracle import make_slide

from cellmill import open_cells, open_embeddings
from cellmill.cohort.config import SegmentCohortConfig
from cellmill.embedding.pooling import CellPool, cover_of_labels
from cellmill.embedding.run import embed_cohort, serial_slides
from cellmill.embedding.slide import EmbeddedSlide
from cellmill.rescore.config import RescoreCohortConfig
from cellmill.rescore.run import rescore_cohort
from cellmill.rescore.run import serial_slides as serial_scores
from cellmill.store.cellset import CellSet
from cellmill.store.embeddings import EmbeddingRecord, read_embedding_record, writing_embeddings
from cellmill.store.objects import ObjectStore
from cellmill.verify.cellset import verify_cellset


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embeddings")
    for number in range(2):
        make_slide(folder / "slides" / f"s{number}.tif", seed=number, width=700, height=600)
    assert run(folder / "slides", folder / "out").all_done
    return folder


@pytest.fixture
def made(once: Path, tmp_path: Path) -> Path:
    shutil.copytree(once, tmp_path / "copy")
    return tmp_path / "copy"


def embed(made: Path, out: str = "out", model: FeatureOracle | None = None, **settings: object) -> list[EmbeddedSlide]:
    values = {"device": "cpu", "batch_size": 4, "field_px": 512, **settings}
    config = SegmentCohortConfig(slides=(str(made / "slides"),), out=str(made / out), **values)  # type: ignore[arg-type]
    return embed_cohort(config, model or FeatureOracle(made / "slides"), engine=serial_slides)


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_every_cell_has_the_mean_of_its_own_pixels_places(made: Path) -> None:
    assert not any(slide.problem for slide in embed(made))
    cells = open_cells(made / "out").join(open_embeddings(made / "out"), on=["slide_id", "cell_id"]).collect()
    assert cells.height == open_cells(made / "out").collect().height > 300
    for slide_id in ("s0", "s1"):
        mask = np.asarray(zarr.open_array(str(made / "out" / "masks" / f"{slide_id}.ome.zarr" / "0"), mode="r")[:])
        for row in cells.filter(pl.col("slide_id") == slide_id).iter_rows(named=True):
            y, x = np.nonzero(mask == row["mask_id"])
            wanted = np.array([(x // 4 * 4 + 2).mean(), (y // 4 * 4 + 2).mean()]) / 16
            assert np.abs(np.array(row["embedding"], np.float64) - wanted).max() <= 0.02  # float16 near 43


def test_tables_and_masks_stay_byte_for_byte_and_the_cell_set_is_whole(made: Path) -> None:
    before = digests(made / "out")
    embed(made)
    after = digests(made / "out")
    assert {key: after[key] for key in before} == before
    added = sorted(after.keys() - before.keys())
    assert added == [f"embeddings/student/s{n}.{suffix}" for n in range(2) for suffix in ("json", "parquet")]
    assert verify_cellset(made / "out").findings == ()


def test_vectors_depend_on_neither_field_size_nor_batches(made: Path) -> None:
    embed(made)
    run(made / "slides", made / "other", field_px=256)
    embed(made, "other", batch_size=3, field_px=256)
    for name in ("s0", "s1"):
        ours, theirs = (made / out / "embeddings" / "student" / f"{name}.parquet" for out in ("out", "other"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_sums_do_not_depend_on_how_cells_are_cut_into_tiles() -> None:
    rng = np.random.default_rng(0)
    labels = np.zeros((16, 16), np.uint32)
    labels[3:9, 5:12], labels[10:15, 2:4] = 7, 9
    features = rng.normal(size=(8, 8, 3)).astype(np.float32)
    ids = np.array([7, 9], np.int64)
    whole, cut = CellPool(3), CellPool(3)
    whole.add(cover_of_labels(labels, ids, side=8, stride_px=2), features)
    for y, x in ((8, 8), (0, 8), (8, 0), (0, 0)):
        part = cover_of_labels(labels[y : y + 8, x : x + 8], ids, side=4, stride_px=2)
        cut.add(part, features[y // 2 : y // 2 + 4, x // 2 : x // 2 + 4])
    (rows, vectors), (other_rows, other_vectors) = whole.take(2), cut.take(2)
    assert rows.tolist() == other_rows.tolist() == [0, 1]
    assert vectors.tobytes() == other_vectors.tobytes()
    by_hand = features.repeat(2, axis=0).repeat(2, axis=1)[labels == 7].astype(np.float64).mean(axis=0)
    assert np.abs(vectors[0] - by_hand).max() < 1e-3


def test_the_same_command_again_does_nothing(made: Path) -> None:
    embed(made)
    PlaceSource.num_tiles = 0
    assert embed(made, batch_size=2) == []
    assert PlaceSource.num_tiles == 0


def test_another_model_is_refused(made: Path) -> None:
    with pytest.raises(ValueError, match="rescore_cohort --embeddings"):
        embed(made, model=FeatureOracle(made / "slides", digest="another"))


def test_a_slide_that_changed_stops_no_other(made: Path) -> None:
    make_slide(made / "slides" / "s0.tif", seed=9, width=700, height=600)
    found = embed(made)
    assert found[0].problem and not found[1].problem
    assert set(open_embeddings(made / "out").collect()["slide_id"]) == {"s1"}
    with pytest.raises(FileNotFoundError, match="segment_cohort"):
        open_embeddings(made / "out", slide_ids=["s0"])


def test_a_writer_that_breaks_off_leaves_nothing_to_read(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    record = EmbeddingRecord("s", "student", "m", "d", "", "layer", 4, 0.5, "cpu", "", "c")
    ids, vectors = np.arange(3, dtype=np.int64), np.ones((3, 2), np.float16)
    with pytest.raises(RuntimeError), writing_embeddings(store, record) as writer:
        writer.add(ids, vectors)
        raise RuntimeError
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="no cell"), writing_embeddings(store, record):
        pass
    with writing_embeddings(store, record) as writer:
        writer.add(ids, vectors)
    found = read_embedding_record(store, "student", "s")
    assert found is not None and (found.num_cells, found.num_dimensions) == (3, 2)


def test_any_changed_byte_or_lost_object_is_found(made: Path) -> None:
    embed(made)
    folder = made / "out" / "embeddings" / "student"
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for place in np.random.default_rng(0).integers(0, len(content), 2).tolist():
            path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
            assert verify_cellset(made / "out", with_content=False).findings, (path.name, place)
        path.unlink()
        assert verify_cellset(made / "out", with_content=False).findings, path.name
        path.write_bytes(content)
    (folder / "s7.json").write_bytes(b"{}")
    assert [one.kind for one in verify_cellset(made / "out").findings] == ["stray"]
    (folder / "s7.json").unlink()
    assert verify_cellset(made / "out").is_whole


def test_vectors_of_an_earlier_table_are_not_given(made: Path) -> None:
    embed(made)
    path = made / "out" / "embeddings" / "student" / "s0.json"
    document = json.loads(path.read_bytes())
    path.write_text(json.dumps({**document, "cells_sha256": "0" * 64}))
    assert set(open_embeddings(made / "out").collect()["slide_id"]) == {"s1"}


def test_a_forgotten_slide_leaves_no_vectors(made: Path) -> None:
    embed(made)
    CellSet(made / "out").forget("s0")
    assert not [path for path in (made / "out").rglob("*s0*") if path.is_file() and "embeddings" in path.parts]
    assert verify_cellset(made / "out").findings == ()


def test_a_heavy_model_stores_vectors_of_the_chosen_cells_with_the_same_scores(made: Path) -> None:
    values = {"where": "cell_type = 'lymphocyte'", "model": "teacher", "device": "cpu", "batch_size": 4}
    config = RescoreCohortConfig(cells=str(made / "out"), slides=(str(made / "slides"),), **values)  # type: ignore[arg-type]
    teacher = FeatureOracle(made / "slides", name="teacher", digest="teacher-1")
    rescore_cohort(config, teacher, engine=serial_scores)
    scores = (made / "out" / "rescored" / "s0.parquet").read_bytes()
    config = RescoreCohortConfig(cells=config.cells, slides=config.slides, embeddings=True, **values)  # type: ignore[arg-type]
    assert not any(slide.problem for slide in rescore_cohort(config, teacher, engine=serial_scores))
    assert (made / "out" / "rescored" / "s0.parquet").read_bytes() == scores
    vectors = open_embeddings(made / "out", embedded_by="teacher")
    cells = open_cells(made / "out", scores="teacher").join(vectors, on=["slide_id", "cell_id"]).collect()
    assert cells.height == open_cells(made / "out", cell_types=["lymphocyte"]).collect().height > 20
    place = np.stack(cells["embedding"].to_numpy()).astype(np.float64) * 16
    centre = cells.select("x_level0_px", "y_level0_px").to_numpy()
    assert np.abs(place - centre).max() < 1.5  # positions are 4 px wide, and outlines are not the mask
    assert verify_cellset(made / "out").findings == ()
    record = read_embedding_record(ObjectStore(made / "out"), "teacher", "s0")
    assert record is not None and record.where == values["where"]


def test_workers_of_ray_give_the_same_bytes(made: Path, ray_session: None) -> None:
    import embedding_helpers
    import oracle
    import ray

    embed(made)
    serial = digests(made / "out" / "embeddings")
    shutil.rmtree(made / "out" / "embeddings")
    # Workers do not see this folder; what lives here travels to them whole.
    for module in (oracle, embedding_helpers):
        ray.cloudpickle.register_pickle_by_value(module)
    try:
        config = SegmentCohortConfig(
            slides=(str(made / "slides"),), out=str(made / "out"), device="cpu", batch_size=4, num_workers=1
        )
        found = embed_cohort(config, FeatureOracle(made / "slides"))
    finally:
        for module in (oracle, embedding_helpers):
            ray.cloudpickle.unregister_pickle_by_value(module)
    assert not any(slide.problem for slide in found)
    assert digests(made / "out" / "embeddings") == serial
