"""Commits: the same bytes however the work was cut, nothing partial wherever a driver dies, seams that hold."""

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from fsspec.implementations.memory import MemoryFileSystem

from cellmill.grid import Box, FieldSpec, SlideGrid
from cellmill.store import claims, objects, tables
from cellmill.store.cellset import CellSet
from cellmill.store.errors import MissingFieldsError, OutputError, SeamError
from cellmill.store.hilbert import hilbert_keys, hilbert_order
from cellmill.store.identity import CellSetIdentity
from cellmill.store.layout import core_mask_key, part_key
from cellmill.store.objects import ObjectStore
from cellmill.store.reading import open_cells
from cellmill.store.testing import LatticeTissue
from cellmill.store.work import FieldCounts, SlideFacts, SlideWork
from cellmill_schemas.cells import cell_schema
from cellmill_schemas.ontology import get_ontology
from cellmill_schemas.slides import SlideStatus

ONTOLOGY = get_ontology("refined7")
IDENTITY = CellSetIdentity("lite", "model", "config", {"target_mpp": 0.5}, ONTOLOGY, "0.1.0")


@dataclass(frozen=True)
class Slide:
    """A slide, its truth and how its work is cut."""

    tissue: LatticeTissue
    field_px: int = 256
    seed: int = 0

    @property
    def facts(self) -> SlideFacts:
        return SlideFacts(
            slide_id=self.tissue.slide_id,
            grid=self.tissue.grid,
            mpp_x=0.25,
            mpp_y=0.25,
            width_level0_px=2 * self.tissue.grid.width_px,
            height_level0_px=2 * self.tissue.grid.height_px,
            slide_fingerprint="fingerprint",
        )

    @property
    def fields(self) -> list[FieldSpec]:
        fields = list(self.tissue.grid.fields(field_px=self.field_px, halo_px=64))
        random.Random(self.seed).shuffle(fields)
        return fields

    def begin(self, url: str, *, device_kind: str = "cpu") -> tuple[CellSet, SlideWork | None]:
        cell_set = CellSet(url).create_or_open(IDENTITY)
        try:
            cell_set.claim(self.tissue.slide_id)
            return cell_set, cell_set.begin_slide(self.facts, field_px=self.field_px, device_kind=device_kind)
        except BaseException:
            cell_set.close()
            raise

    def write(self, cell_set: CellSet, work: SlideWork, fields: list[FieldSpec]) -> int:
        """Write the parts that are missing; returns how many that were."""
        todo = [field for field in fields if field.name not in cell_set.finished_fields(work)]
        for field in todo:
            core = field.core
            cell_set.write_part(
                work,
                field=field,
                cells=self.tissue.cells_in(core.clipped(work.grid.box)),
                core_mask=self.tissue.mask_in(core),
                counts=FieldCounts(num_tiles=1, analysed_px=core.clipped(work.grid.box).area, seconds=0.5),
            )
        return len(todo)

    def run(self, url: str, **options: Any) -> SlideStatus:
        """The whole slide, or what is left of it."""
        cell_set, work = self.begin(url, **options)
        try:
            if work is not None:
                self.write(cell_set, work, self.fields)
                cell_set.commit(work, planned=self.fields, elsewhere=FieldCounts(excluded_px={"background": 40}))
        finally:
            cell_set.close()
        status = cell_set.status(self.tissue.slide_id)
        assert status is not None
        return status


def slide_of(width_px: int, height_px: int, *, tissue: Box | None = None, spacing_px: int = 24, **cut: int) -> Slide:
    grid = SlideGrid(width_px, height_px, scale_x=2.0, scale_y=2.0, target_mpp=0.5)
    return Slide(LatticeTissue("s", grid, tissue or grid.box, spacing_px=spacing_px), **cut)


SMALL = slide_of(610, 500)


@pytest.fixture(params=["local", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "out")
    else:
        yield f"memory://{tmp_path}/out"
        MemoryFileSystem.store.clear()


def cells_of(url: str) -> bytes:
    return ObjectStore(url).get("cells/s.parquet")


def mask_of(url: str) -> np.ndarray:
    """Level 0, copied out of whatever storage."""
    store = ObjectStore(url)
    objects = {key.removeprefix("masks/s.ome.zarr/"): store.get(key) for key in store.list_keys("masks/s.ome.zarr")}
    buffer = zarr.core.buffer.default_buffer_prototype().buffer
    memory = zarr.storage.MemoryStore({key: buffer.from_bytes(data) for key, data in objects.items()})
    return zarr.open_group(memory, mode="r")["0"][:]


# ------------------------------------------------------------------------------------------------ the same bytes


def test_cells_do_not_depend_on_field_size_or_arrival_order(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Several row groups, several merge blocks, fields that straddle them.
    monkeypatch.setattr(tables, "ROW_GROUP_CELLS", 2048)
    wide = slide_of(6000, 4400, spacing_px=40)
    seen: set[tuple[str, str]] = set()
    for number, (field_px, seed) in enumerate(((1280, 1), (1024, 2), (6144, 3))):
        status = replace(wide, field_px=field_px, seed=seed).run(f"{url}{number}")
        seen.add((status.cells_sha256, status.mask_digest))
        assert status.outcome == "done"
    assert len(seen) == 1
    assert cells_of(f"{url}0") == cells_of(f"{url}1")
    metadata = pq.ParquetFile(pa.BufferReader(cells_of(f"{url}0"))).metadata
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    assert len(sizes) > 1
    assert set(sizes[:-1]) == {2048}


def test_the_table_holds_every_cell_once_in_hilbert_order_and_the_mask_agrees(url: str) -> None:
    status = SMALL.run(url)
    table = pq.read_table(pa.BufferReader(cells_of(url)))
    truth = SMALL.tissue.cells_in(SMALL.tissue.grid.box)
    assert sorted(table["cell_id"].to_pylist()) == sorted(truth["cell_id"].to_pylist())
    anchor = table["mask_id"].to_numpy().astype(np.int64) - 1
    grid = SMALL.tissue.grid
    keys = hilbert_keys(anchor % grid.width_px, anchor // grid.width_px, order=hilbert_order(grid))
    assert (np.diff(keys) > 0).all()
    mask = mask_of(url)
    assert np.array_equal(mask, SMALL.tissue.mask_in(grid.box))
    assert set(np.unique(mask)) - {0} == set(table["mask_id"].to_pylist())
    by_id = {row["cell_id"]: row for row in truth.to_pylist()}
    assert all(row == by_id[row["cell_id"]] for row in table.to_pylist())
    assert status.num_cells == table.num_rows == sum(status.num_cells_by_type.values())
    assert status.analysed_mm2 == pytest.approx(610 * 500 * 0.25e-6)
    assert status.excluded.background_mm2 == pytest.approx(10e-6)
    assert status.num_fields == 6


def test_the_table_follows_the_schema_with_dictionaries_in_ontology_order(url: str) -> None:
    SMALL.run(url)
    table = pq.read_table(pa.BufferReader(cells_of(url)))
    schema = cell_schema(ONTOLOGY)
    assert table.schema.names == schema.names
    for field in schema:
        if not pa.types.is_dictionary(field.type):
            assert table.schema.field(field.name).type == field.type, field.name
    assert table["cell_type"].combine_chunks().dictionary.to_pylist() == list(ONTOLOGY.names)
    assert table["slide_id"].combine_chunks().dictionary.to_pylist() == ["s"]


def test_a_part_may_come_with_columns_in_other_dictionaries(url: str) -> None:
    cell_set, work = SMALL.begin(url)
    assert work is not None
    (field, *others) = SMALL.fields
    cells = SMALL.tissue.cells_in(field.core)
    names = list(reversed(ONTOLOGY.names))
    turned = pa.DictionaryArray.from_arrays(
        pa.array([names.index(name) for name in cells["cell_type"].to_pylist()], pa.int8()), pa.array(names)
    )
    cells = cells.set_column(cells.schema.get_field_index("cell_type"), cells.schema.field("cell_type"), turned)
    cell_set.write_part(
        work, field=field, cells=cells, core_mask=SMALL.tissue.mask_in(field.core), counts=FieldCounts()
    )
    SMALL.write(cell_set, work, others)
    status = cell_set.commit(work, planned=SMALL.fields, elsewhere=FieldCounts())
    cell_set.close()
    assert status.cells_sha256 == SMALL.run(f"{url}-plain").cells_sha256


def test_a_region_query_reads_a_fraction_of_the_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROW_GROUP_CELLS", 512)  # 128 row groups, as a slide of 2 million cells has
    wide = slide_of(7_680, 7_680, spacing_px=30, field_px=4096)
    wide.run(str(tmp_path))
    metadata = pq.ParquetFile(tmp_path / "cells" / "s.parquet").metadata
    columns = {metadata.row_group(0).column(c).path_in_schema: c for c in range(metadata.num_columns)}
    side, rng, shares = 1500, np.random.default_rng(0), list[float]()
    boxes = np.array(
        [
            [
                getattr(metadata.row_group(group).column(columns[f"bbox.{name}"]).statistics, bound)
                for name, bound in (("xmin", "min"), ("ymin", "min"), ("xmax", "max"), ("ymax", "max"))
            ]
            for group in range(metadata.num_row_groups)
        ]
    )
    for x, y in rng.integers(0, 2 * 7_680 - side, (100, 2)):  # regions of 1 % of the slide
        touched = (boxes[:, 0] < x + side) & (boxes[:, 2] > x) & (boxes[:, 1] < y + side) & (boxes[:, 3] > y)
        shares.append(float(touched.mean()))
    assert metadata.num_row_groups == 128
    assert np.mean(shares) < 0.05


# ---------------------------------------------------------------------------------------------------- empty slides


def test_a_slide_without_cells_is_done_empty_with_the_figures(url: str) -> None:
    status = slide_of(610, 500, tissue=Box(0, 0, 0, 0)).run(url)
    assert status.outcome == "done_empty"
    assert status.reasons == ("No cells: 0.08 mm2 analysed in 6 tiles; excluded in mm2: background 0.00.",)
    assert pq.read_table(pa.BufferReader(cells_of(url))).num_rows == 0
    assert not mask_of(url).any()


def test_a_slide_without_fields_is_done_empty(url: str) -> None:
    cell_set, work = SMALL.begin(url)
    assert work is not None
    elsewhere = FieldCounts(excluded_px={"background": 610 * 500})
    status = cell_set.commit(work, planned=[], elsewhere=elsewhere, reasons=("No tissue found.",))
    cell_set.close()
    assert status.outcome == "done_empty"
    assert status.reasons[0] == "No tissue found."
    assert status.excluded.background_mm2 == status.slide_mm2
    assert pq.read_table(pa.BufferReader(cells_of(url))).schema.names == cell_schema(ONTOLOGY).names


# ------------------------------------------------------------------------------------------------- resume and kill


def test_a_rerun_does_only_the_missing_fields(url: str) -> None:
    cell_set, work = SMALL.begin(url)
    assert work is not None
    assert SMALL.write(cell_set, work, SMALL.fields[:4]) == 4
    with pytest.raises(MissingFieldsError) as caught:
        cell_set.commit(work, planned=SMALL.fields, elsewhere=FieldCounts())
    assert set(caught.value.fields) == {field.name for field in SMALL.fields[4:]}
    cell_set.close()
    cell_set, work = SMALL.begin(url)
    assert work is not None
    assert SMALL.write(cell_set, work, SMALL.fields) == 2
    cell_set.commit(work, planned=SMALL.fields, elsewhere=FieldCounts())
    cell_set.close()
    cell_set, work = SMALL.begin(url)
    assert work is None
    cell_set.close()


@pytest.mark.parametrize("change", ["field_px", "device_kind"])
def test_parts_of_another_work_key_are_discarded_with_their_masks(url: str, change: str) -> None:
    other = replace(SMALL, field_px=512) if change == "field_px" else SMALL
    cell_set, work = other.begin(url, device_kind="cuda" if change == "device_kind" else "cpu")
    assert work is not None
    # Cells where the slide has none, so that a shard left over would show.
    everywhere = replace(other, tissue=replace(SMALL.tissue, spacing_px=18))
    everywhere.write(cell_set, work, other.fields)
    cell_set.close()
    assert SMALL.run(url).cells_sha256 == SMALL.run(f"{url}-plain").cells_sha256
    assert np.array_equal(mask_of(url), mask_of(f"{url}-plain"))
    assert ObjectStore(url).list_keys("_work") == []


class Killed(BaseException):
    """Stands for kill -9: no cleanup may rely on catching it."""


@contextmanager
def dying_at(operation: int, *, after: bool) -> Iterator[list[str]]:
    """Die before or after the n-th change to storage."""
    log: list[str] = []

    def count(name: str, act: Callable[[], Any]) -> Any:
        log.append(name)
        if len(log) == operation + 1 and not after:
            raise Killed
        result = act()
        if len(log) == operation + 1:
            raise Killed
        return result

    put, create, delete, publishing = (getattr(ObjectStore, name) for name in ("put", "create", "delete", "publishing"))

    @contextmanager
    def published(store: ObjectStore, key: str) -> Iterator[IO[bytes]]:
        inner = publishing(store, key)
        try:
            with inner as file:
                yield file
                if len(log) == operation and not after:
                    log.append(f"publish {key}")
                    raise Killed
        except Killed:
            raise
        count(f"publish {key}", lambda: None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ObjectStore, "put", lambda s, k, d: count(f"put {k}", lambda: put(s, k, d)))
        patch.setattr(ObjectStore, "create", lambda s, k, d: count(f"create {k}", lambda: create(s, k, d)))
        patch.setattr(ObjectStore, "delete", lambda s, k: count(f"delete {k}", lambda: delete(s, k)))
        patch.setattr(ObjectStore, "publishing", published)
        yield log


def assert_nothing_partial(url: str, *, cells: bytes, mask: np.ndarray) -> None:
    """Whatever a reader can open is whole."""
    store = ObjectStore(url)
    if store.exists("cellset.json"):
        assert open_cells(url).collect().height in (0, pq.read_table(pa.BufferReader(cells)).num_rows)
    if store.exists("cells/s.parquet"):
        assert cells_of(url) == cells
    if store.exists("masks/s.ome.zarr/zarr.json"):
        assert np.array_equal(mask_of(url), mask)
    if store.exists("slides/s.json"):
        assert store.exists("cells/s.parquet")
        assert store.exists("masks/s.ome.zarr/zarr.json")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_kill_at_any_change_to_storage_leaves_nothing_partial_and_a_rerun_finishes(
    url: str, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    monkeypatch.setattr(claims.Owner, "_runs_here", lambda _: False)  # the killed driver's process is gone
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 1e6)
    monkeypatch.setattr(objects.os, "fsync", lambda _: None)  # the machine does not die here, and it is slow
    slide = slide_of(540, 200)
    slide.run(f"{url}-plain")
    cells, mask = cells_of(f"{url}-plain"), mask_of(f"{url}-plain")
    # Half of the work lies there under another key, so that discarding it is killed as well.
    other = replace(slide, field_px=512)
    for operation in range(200):
        ObjectStore(url).delete_tree("_work")
        shutil.rmtree(url, ignore_errors=True)
        MemoryFileSystem.store = {k: v for k, v in MemoryFileSystem.store.items() if "/out/" not in k}
        cell_set, work = other.begin(url)
        assert work is not None
        other.write(cell_set, work, other.fields[:1])
        cell_set.close()
        with dying_at(operation, after=after) as log:
            try:
                slide.run(url)
                killed = False
            except Killed:
                killed = True
        assert_nothing_partial(url, cells=cells, mask=mask)
        slide.run(url)
        assert_nothing_partial(url, cells=cells, mask=mask)
        assert cells_of(url) == cells, log[-1]
        assert ObjectStore(url).list_keys("_work") == [], log[-1]
        if not killed:
            break
    assert not killed
    assert operation > 20


def test_a_full_disk_at_any_change_to_storage_is_an_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = objects.os.fsync
    url = str(tmp_path / "out")
    SMALL.run(f"{url}-plain")
    for room in range(100):
        left = [room]

        def fsync(descriptor: int, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(28, "No space left on device")
            real(descriptor)

        monkeypatch.setattr(objects.os, "fsync", fsync)
        try:
            SMALL.run(url)
            break
        except OutputError as error:
            assert "No space left on device" in str(error)
            assert url in str(error)
        finally:
            monkeypatch.setattr(objects.os, "fsync", real)
    assert room > 1
    assert cells_of(url) == cells_of(f"{url}-plain")


# -------------------------------------------------------------------------------------------------------- seams


def test_a_seam_whose_cell_has_no_row_names_both_fields_and_a_redo_heals_it(url: str) -> None:
    cell_set, work = SMALL.begin(url)
    assert work is not None
    SMALL.write(cell_set, work, SMALL.fields)
    owner = next(field for field in SMALL.fields if (field.column, field.row) == (0, 0))
    cells = SMALL.tissue.cells_in(owner.core)
    # A neighbour paints a cell that this field says it does not have: as when a retry decoded something else.
    right = SMALL.tissue.mask_in(Box(256, 0, 512, 256))
    x = (cells["mask_id"].to_numpy().astype(np.int64) - 1) % work.grid.width_px
    shared = np.isin(cells["mask_id"].to_numpy(), right)
    assert shared.any()
    assert x[shared].min() > 200
    cell_set.write_part(
        work,
        field=owner,
        cells=cells.filter(pa.array(~shared)),
        core_mask=SMALL.tissue.mask_in(owner.core),
        counts=FieldCounts(),
    )
    with pytest.raises(SeamError, match="no row in the table") as caught:
        cell_set.commit(work, planned=SMALL.fields, elsewhere=FieldCounts())
    neighbour = next(field for field in SMALL.fields if (field.column, field.row) == (1, 0))
    assert {owner.name, neighbour.name} <= set(caught.value.fields)
    assert not cell_set.store.exists("cells/s.parquet")
    assert cell_set.finished_fields(work).isdisjoint(caught.value.fields)
    assert SMALL.write(cell_set, work, SMALL.fields) == len(caught.value.fields)
    cell_set.commit(work, planned=SMALL.fields, elsewhere=FieldCounts())
    cell_set.close()
    SMALL.run(f"{url}-plain")
    assert cells_of(url) == cells_of(f"{url}-plain")


@pytest.mark.parametrize("gone", ["shard", "record"])
def test_a_part_whose_mask_shards_are_gone_is_redone(url: str, gone: str) -> None:
    cell_set, work = SMALL.begin(url)
    assert work is not None
    SMALL.write(cell_set, work, SMALL.fields)
    record = core_mask_key("s", work.work_key, "x00000_y00001")
    cell_set.store.delete("masks/s.ome.zarr/0/c/1/0" if gone == "shard" else record)
    with pytest.raises(SeamError) as caught:
        cell_set.commit(work, planned=SMALL.fields, elsewhere=FieldCounts())
    assert caught.value.fields == ("x00000_y00001",)
    assert not cell_set.store.exists(part_key("s", work.work_key, "x00000_y00001"))
    cell_set.close()


def test_a_commit_sweeps_what_killed_writers_left(tmp_path: Path) -> None:
    leftovers = [
        tmp_path / "masks" / "s.ome.zarr" / "0" / "c" / "0" / ".1.0123456789ab.tmp",
        tmp_path / "cells" / ".s.parquet.0123456789ab.tmp",
        tmp_path / "slides" / ".s.json.0123456789ab.tmp",
    ]
    cell_set, work = SMALL.begin(str(tmp_path))
    assert work is not None
    SMALL.write(cell_set, work, SMALL.fields)
    for leftover in leftovers:
        leftover.parent.mkdir(parents=True, exist_ok=True)
        leftover.write_bytes(b"half")
    cell_set.commit(work, planned=SMALL.fields, elsewhere=FieldCounts())
    cell_set.close()
    assert not any(leftover.exists() for leftover in leftovers)
    assert not list(tmp_path.rglob("*.tmp"))


# ------------------------------------------------------------------------------------------------ refused parts


def test_parts_that_contradict_their_field_are_refused(url: str) -> None:
    cell_set, work = SMALL.begin(url)
    assert work is not None
    field = next(iter(work.grid.fields(field_px=256, halo_px=64)))
    tissue = SMALL.tissue
    mask, cells = tissue.mask_in(field.core), tissue.cells_in(field.core)
    refused: list[tuple[str, pa.Table, np.ndarray]] = [
        ("does not own", tissue.cells_in(field.core.grown(64).clipped(work.grid.box)), mask),
        ("an id twice", pa.concat_tables([cells, cells.slice(0, 1)]), mask),
        ("must cover its core", cells, mask[:-1]),
        ("must follow cell_schema", cells.drop_columns(["bbox"]), mask),
        ("Column slide_id", replace(tissue, slide_id="other").cells_in(field.core), mask),
    ]
    for reason, table, pixels in refused:
        with pytest.raises(ValueError, match=reason):
            cell_set.write_part(work, field=field, cells=table, core_mask=pixels, counts=FieldCounts())
    assert cell_set.finished_fields(work) == set()
    cell_set.close()


def test_a_retried_part_overwrites_the_same_bytes(url: str) -> None:
    cell_set, work = SMALL.begin(url)
    assert work is not None
    SMALL.write(cell_set, work, SMALL.fields[:1])
    first = {key: cell_set.store.get(key) for key in cell_set.store.list_keys("_work") if key.endswith(".arrow")}
    field = SMALL.fields[0]
    cell_set.store.delete(part_key("s", work.work_key, field.name))
    SMALL.write(cell_set, work, [field])
    assert {key: cell_set.store.get(key) for key in first} == first
    cell_set.close()
