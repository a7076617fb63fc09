"""A second opinion: the cells a query chooses, only their tiles, joined and never in place of the student's table."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from cohort_helpers import run
from oracle import OracleModel, OracleSource, make_slide

from cellmill import open_cells
from cellmill.cohort.sources import TileBatch
from cellmill.grid import SlideGrid, TileGeometry
from cellmill.rescore.choosing import ChosenCells, tiles_of_cells, within_budget
from cellmill.rescore.config import RescoreCohortConfig
from cellmill.rescore.run import rescore_cohort, serial_slides
from cellmill.rescore.scoring import score_cells
from cellmill.slides.model_grid import ModelPixels
from cellmill.store.objects import ObjectStore
from cellmill.store.rescored import read_scored_by, write_rescored
from cellmill.verify.cellset import verify_cellset


@dataclass(frozen=True)
class TeacherOracle(OracleModel):
    """Knows the truth too, but calls every lymphocyte a macrophage."""

    name: str = "teacher"
    digest: str = "teacher-1"

    def open(self, *, device: str, batch_size: int, num_threads: int) -> "TeacherSource":
        return TeacherSource(self)


class TeacherSource(OracleSource):
    num_tiles = 0

    def predict(self, batches):  # type: ignore[no-untyped-def]
        lymphocyte, macrophage = (1 + self._model.ontology.index(name) for name in ("lymphocyte", "macrophage"))
        for batch in batches:
            TeacherSource.num_tiles += len(batch.indices)
            maps = self._maps_of(batch.slide_id, batch.indices)
            maps.prob[:, [lymphocyte, macrophage]] = maps.prob[:, [macrophage, lymphocyte]]
            yield maps


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rescore")
    for number in range(2):
        make_slide(folder / "slides" / f"s{number}.tif", seed=number, width=900, height=700)
    assert run(folder / "slides", folder / "out").all_done
    return folder


@pytest.fixture
def made(once: Path, tmp_path: Path) -> tuple[Path, Path]:
    shutil.copytree(once, tmp_path / "copy")
    return tmp_path / "copy" / "slides", tmp_path / "copy" / "out"


def config_of(made: tuple[Path, Path], **settings: object) -> RescoreCohortConfig:
    values = {"where": "confidence >= 0", "model": "teacher", "device": "cpu", "batch_size": 4, **settings}
    return RescoreCohortConfig(cells=str(made[1]), slides=(str(made[0]),), **values)  # type: ignore[arg-type]


def test_a_teacher_that_is_the_student_agrees_with_itself(made: tuple[Path, Path]) -> None:
    found = rescore_cohort(config_of(made), OracleModel(made[0]), engine=serial_slides)
    cells = open_cells(made[1]).collect()
    assert sum(slide.num_scored for slide in found) == cells.height
    assert all(slide.num_agreeing == slide.num_scored for slide in found)
    teacher = open_cells(made[1], scores="teacher").collect()
    both = cells.join(teacher, on=["slide_id", "cell_id"], suffix="_teacher")
    assert both.height == cells.height
    assert (both["cell_type"] == both["cell_type_teacher"]).all()
    # Outlines are rounded to whole level-0 px, so a few pixels at the rim differ from the mask's.
    assert (both["confidence"] - both["confidence_teacher"]).abs().max() < 0.05


def test_only_the_chosen_cells_are_scored_and_only_their_tiles_predicted(made: tuple[Path, Path]) -> None:
    TeacherSource.num_tiles = 0
    config = config_of(made, where="cell_type = 'lymphocyte' AND x_level0_px < 300")
    found = rescore_cohort(config, TeacherOracle(made[0]), engine=serial_slides)
    chosen = open_cells(made[1]).filter((pl.col("cell_type") == "lymphocyte") & (pl.col("x_level0_px") < 300)).collect()
    assert sum(slide.num_scored for slide in found) == chosen.height > 3
    assert TeacherSource.num_tiles == sum(slide.num_tiles for slide in found)
    whole = sum(-(-900 // 128) * -(-700 // 128) for _ in found)
    assert TeacherSource.num_tiles < 0.6 * whole
    assert all(slide.pairs.keys() == {("lymphocyte", "macrophage")} for slide in found)


def test_the_best_of_both_is_the_teachers_where_it_looked(made: tuple[Path, Path]) -> None:
    before = {path: path.read_bytes() for path in sorted((made[1] / "cells").iterdir())}
    rescore_cohort(config_of(made, where="cell_type = 'lymphocyte'"), TeacherOracle(made[0]), engine=serial_slides)
    student, best = open_cells(made[1]).collect(), open_cells(made[1], scores="best").collect()
    assert best["cell_id"].to_list() == student["cell_id"].to_list()
    kinds = dict(best.group_by("cell_type").len().iter_rows())
    assert "lymphocyte" not in kinds
    changed = best.filter(pl.col("scored_by") == "teacher")
    assert set(changed["cell_type"].to_list()) == {"macrophage"}
    assert not changed["agrees"].any()
    untouched = best.filter(pl.col("scored_by") == "student")
    assert untouched["agrees"].is_null().all()
    teacher = open_cells(made[1], scores="teacher", cell_types=["macrophage"]).collect()
    assert teacher.height == changed.height
    assert {path: path.read_bytes() for path in sorted((made[1] / "cells").iterdir())} == before


def test_without_scores_the_best_is_the_student(made: tuple[Path, Path]) -> None:
    best = open_cells(made[1], scores="best").collect()
    assert set(best["scored_by"].to_list()) == {"student"}
    assert open_cells(made[1], scores="teacher").collect().height == 0


def test_scores_are_the_same_bytes_again_and_others_need_leave(made: tuple[Path, Path]) -> None:
    config = config_of(made)
    rescore_cohort(config, TeacherOracle(made[0]), engine=serial_slides)
    first = (made[1] / "rescored" / "s0.parquet").read_bytes()
    rescore_cohort(config, TeacherOracle(made[0]), engine=serial_slides)
    assert (made[1] / "rescored" / "s0.parquet").read_bytes() == first
    refused = rescore_cohort(config_of(made, where="confidence > 0.1"), TeacherOracle(made[0]), engine=serial_slides)
    assert all("--replace" in slide.problem for slide in refused)
    allowed = config_of(made, where="confidence > 0.1", replace=True)
    assert not any(slide.problem for slide in rescore_cohort(allowed, TeacherOracle(made[0]), engine=serial_slides))


def test_scores_of_an_earlier_table_are_not_joined(made: tuple[Path, Path]) -> None:
    rescore_cohort(config_of(made), TeacherOracle(made[0]), engine=serial_slides)
    path = made[1] / "rescored" / "s0.parquet"
    table = pq.read_table(path)
    about = table.schema.metadata[b"cellmill_rescored"].replace(b'"cells_sha256": "', b'"cells_sha256": "0')
    pq.write_table(table.replace_schema_metadata({b"cellmill_rescored": about}), path)
    assert set(open_cells(made[1], scores="teacher").collect()["slide_id"].to_list()) == {"s1"}


def test_a_budget_takes_the_tiles_with_most_cells(made: tuple[Path, Path]) -> None:
    config = config_of(made, budget_mm2=0.05)
    found = rescore_cohort(config, TeacherOracle(made[0]), engine=serial_slides)
    assert sum(slide.rescored_mm2 for slide in found) <= 0.05
    assert all(0 < slide.num_scored < slide.num_chosen for slide in found)
    with pytest.raises(ValueError, match="less than a tile"):
        rescore_cohort(config_of(made, budget_mm2=0.0001), TeacherOracle(made[0]), engine=serial_slides)


def test_a_budget_counts_cells_by_tile() -> None:
    tiles = [[(0, 0)], [(0, 0)], [(0, 0), (1, 0)], [(1, 0)], [(5, 5)]]
    assert within_budget(tiles, most_tiles=1).tolist() == [0, 1]
    assert within_budget(tiles, most_tiles=2).tolist() == [0, 1, 2, 3]
    assert within_budget(tiles, most_tiles=None).tolist() == [0, 1, 2, 3, 4]


def test_a_cell_on_a_seam_votes_with_the_pixels_of_both_tiles() -> None:
    from shapely.geometry import box

    geometry = TileGeometry(tile_px=64, margin_px=16)
    grid = SlideGrid(96, 64, 1.0, 1.0, 0.5)
    cells = ChosenCells(np.array([7]), ("dead",), (box(28, 4, 38, 8),))  # 4 px of width left of the seam at 32, 6 right

    class White:
        def read(self, box, *, wanted=None):  # type: ignore[no-untyped-def]
            return ModelPixels(box, np.full((box.height, box.width, 3), 255, np.uint8))

    class Halves:
        """Tile 0 is sure of class 0, tile 1 of class 1, both with half the probability on background."""

        def predict(self, batches):  # type: ignore[no-untyped-def]
            from cellmill.models.inference import TileMaps

            for batch in batches:
                assert isinstance(batch, TileBatch)
                prob = np.zeros((len(batch.indices), 3, 32, 32), np.uint8)
                prob[:, 0] = 127
                for number, (i, _) in enumerate(batch.indices):
                    prob[number, 1 + i] = 128
                yield TileMaps(vectors=np.zeros((len(prob), 2, 32, 32), np.int16), prob=prob)

    tiles = tiles_of_cells(cells, geometry, grid)
    assert tiles == [[(0, 0), (1, 0)]]
    scores = score_cells(White(), cells, tiles, Halves(), slide_id="s", geometry=geometry, num_classes=2, batch_size=1)
    assert scores.num_pixels.tolist() == [40]
    assert scores.type_prob[0].tolist() == pytest.approx([0.4, 0.6])
    assert scores.detection_prob[0] == pytest.approx(128 / 255)


def test_agreement_is_kept_for_queries_and_the_cell_set_stays_whole(made: tuple[Path, Path]) -> None:
    rescore_cohort(config_of(made), TeacherOracle(made[0]), engine=serial_slides)
    table = pl.read_parquet(made[1] / "rescored.parquet")
    wrong = table.filter((pl.col("student_type") == "lymphocyte") & (pl.col("teacher_type") == "macrophage"))
    assert wrong["cells"].sum() > 0
    assert verify_cellset(str(made[1])).findings == ()


def test_settings_that_cannot_be_met_are_told_before_anything_is_read(made: tuple[Path, Path]) -> None:
    from cellmill_schemas.ontology import get_ontology

    other = TeacherOracle(made[0], ontology=get_ontology("pannuke5"))
    with pytest.raises(ValueError, match="same classes"):
        rescore_cohort(config_of(made), other, engine=serial_slides)
    with pytest.raises(ValueError, match="--where"):
        rescore_cohort(config_of(made, where="martian > 3"), TeacherOracle(made[0]), engine=serial_slides)
    with pytest.raises(ValueError, match="not finished"):
        rescore_cohort(config_of(made, slide_id=("absent",)), TeacherOracle(made[0]), engine=serial_slides)
    with pytest.raises(ValueError, match="--budget-mm2"):
        config_of(made, budget_mm2=-1.0)


def test_a_slide_whose_file_is_gone_stops_no_other(made: tuple[Path, Path]) -> None:
    config = config_of(made)
    (made[0] / "s0.tif").write_bytes(b"no slide any more")
    found = rescore_cohort(config, TeacherOracle(made[0]), engine=serial_slides)
    assert found[0].problem and not found[1].problem


def test_workers_of_ray_give_the_same_scores(made: tuple[Path, Path], ray_session: None) -> None:
    import oracle
    import ray

    config = config_of(made, num_workers=1)
    rescore_cohort(config, OracleModel(made[0]), engine=serial_slides)
    serial = (made[1] / "rescored" / "s1.parquet").read_bytes()
    (made[1] / "rescored" / "s1.parquet").unlink()
    # Workers do not see this folder; what lives here travels to them whole.
    ray.cloudpickle.register_pickle_by_value(oracle)
    try:
        found = rescore_cohort(config, OracleModel(made[0]))
    finally:
        ray.cloudpickle.unregister_pickle_by_value(oracle)
    assert not any(slide.problem for slide in found)
    assert (made[1] / "rescored" / "s1.parquet").read_bytes() == serial


def flipped(path: Path, place: int) -> bytes:
    """Damage one byte of a file; returns what it was."""
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[place] ^= 0x10
    path.write_bytes(damaged)
    return content


@pytest.mark.parametrize("name", ["rescored/s0.parquet", "rescored.parquet"])
def test_a_flipped_byte_in_a_second_opinion_is_found(made: tuple[Path, Path], name: str) -> None:
    rescore_cohort(config_of(made), TeacherOracle(made[0]), engine=serial_slides)
    path = made[1] / name
    assert verify_cellset(made[1]).findings == ()
    size = path.stat().st_size
    for place in (0, 4, size // 3, size // 2, size - 20, size - 1):
        content = flipped(path, place)
        (finding,) = verify_cellset(made[1]).findings
        assert (finding.kind, finding.where) == ("damaged", name), (place, finding)
        path.write_bytes(content)


def test_a_second_opinion_that_is_gone_or_of_other_cells_is_found(made: tuple[Path, Path]) -> None:
    rescore_cohort(config_of(made), TeacherOracle(made[0]), engine=serial_slides)
    store, path = ObjectStore(str(made[1])), made[1] / "rescored" / "s0.parquet"
    scored_by = read_scored_by(store, "s0")
    assert scored_by is not None
    write_rescored(store, "s0", pq.read_table(path), replace(scored_by, cells_sha256="0" * 64))
    (finding,) = verify_cellset(made[1]).findings
    assert (finding.kind, finding.where) == ("contradiction", "rescored/s0.parquet")
    path.unlink()
    (finding,) = verify_cellset(made[1]).findings
    assert (finding.kind, finding.where) == ("missing", "rescored/s0.parquet")
