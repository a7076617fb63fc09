"""`verify_cellset`: a cell set as its run left it is whole, and whatever is not as it was left is found and named."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from cohort_helpers import run
from fsspec.implementations.memory import MemoryFileSystem
from oracle import make_slide, write_tiff

from cellmill.store.cellset import CellSet
from cellmill.store.digests import parse_digests, write_digests
from cellmill.store.identity import read_identity
from cellmill.store.objects import HashingFile, ObjectStore
from cellmill.store.seal import SEAL_KEY, UNSEALED, is_sealed, sealed
from cellmill.store.shards import chunks_of, decode_shard, encode_shard
from cellmill.store.statuses import read_status, write_slides_table, write_status
from cellmill.store.tables import CellTableWriter
from cellmill.verify import VerifyReport, verify_cellset
from cellmill.verify.job import main
from cellmill_schemas.cells import cell_schema
from cellmill_schemas.slides import SlideStatus

FIELD_PX = 512


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cell set as a run leaves it: two slides done, one of them over several fields, one empty, one failed."""
    folder = tmp_path_factory.mktemp("verify")
    slides = folder / "slides"
    make_slide(slides / "wide.tif", width=1100, height=700)
    make_slide(slides / "small.tif", seed=3, width=300, height=260)
    write_tiff(slides / "glass.tif", np.full((260, 300, 3), 246, np.uint8), mpp=(0.5, 0.5))
    (slides / "text.svs").write_text("Dear colleague")
    run(slides, folder / "out", field_px=FIELD_PX)
    return folder / "out"


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


def objects_of(out: Path) -> list[str]:
    """All but the attempts and claims that are kept of a slide that failed."""
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    return [name for name in names if not name.startswith("_work/text/")]


def said(report: VerifyReport) -> set[tuple[str, str]]:
    return {(finding.kind, finding.where) for finding in report.findings}


# ------------------------------------------------------------------------------------------------------- whole


def test_what_a_run_leaves_is_whole_and_every_object_was_looked_at(made: Path) -> None:
    report = verify_cellset(made)
    assert report.findings == ()
    assert report.num_slides_by_outcome == {"done": 2, "done_empty": 1, "failed": 1}
    names = objects_of(made)
    assert report.num_objects == len(names)
    assert report.num_bytes == sum((made / name).stat().st_size for name in names)
    status = {item.slide_id: item for item in CellSet(made).statuses()}
    assert report.num_cells == status["wide"].num_cells + status["small"].num_cells > 500


def test_it_holds_in_a_bucket_as_on_a_disk(made: Path) -> None:
    store = ObjectStore("memory://verify/out")
    try:
        for name in objects_of(made):
            store.put(name, (made / name).read_bytes())
        report = verify_cellset(store.url, num_workers=3)
        assert report.is_whole and report.num_cells > 500
        store.delete("masks/wide.ome.zarr/1/zarr.json")
        assert said(verify_cellset(store.url)) == {("missing", "masks/wide.ome.zarr/1/zarr.json")}
    finally:
        MemoryFileSystem.store.clear()


def test_the_lists_of_digests_are_those_of_sha256sum(made: Path) -> None:
    for name in made.glob("slides/*.sha256"):
        for line in name.read_text().splitlines():
            digest, key = line.split("  ")
            assert hashlib.sha256((made / key).read_bytes()).hexdigest() == digest


# ------------------------------------------------------------------------------------- damage, byte by byte


def test_any_flipped_byte_in_any_object_is_found_and_named(out: Path) -> None:
    rng = random.Random(20)
    names = objects_of(out)
    assert len(names) > 15
    for name in names:
        path = out / name
        content = path.read_bytes()
        for place in {0, len(content) - 1, *(rng.randrange(len(content)) for _ in range(3))}:
            damaged = bytearray(content)
            damaged[place] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            report = verify_cellset(out)
            assert ("damaged", name) in said(report), (name, place, report.findings)
        path.write_bytes(content)
    assert verify_cellset(out).is_whole


def test_any_object_that_is_gone_is_named(out: Path) -> None:
    for name in objects_of(out):
        content = (out / name).read_bytes()
        (out / name).unlink()
        report = verify_cellset(out)
        if name == "slides/text.json":  # what is left of a slide that failed is what one under way looks like
            assert said(report) == {("unfinished", "_work/text"), ("contradiction", "slides.parquet")}
        else:
            assert ("missing", name) in said(report), (name, report.findings)
        (out / name).write_bytes(content)


def test_any_object_that_is_cut_or_empty_is_named(out: Path) -> None:
    for name in objects_of(out):
        content = (out / name).read_bytes()
        for part in (b"", content[: len(content) // 2], content + b"\0"):
            (out / name).write_bytes(part)
            assert ("damaged", name) in said(verify_cellset(out)), (name, len(part))
        (out / name).write_bytes(content)


def test_every_single_byte_of_a_sealed_document_counts() -> None:
    document = sealed(json.dumps({"slide_id": f"{SEAL_KEY}: {'1' * 64}", SEAL_KEY: UNSEALED}, indent=2).encode())
    assert is_sealed(document)
    for place in range(len(document)):
        for change in (1, 0x20, 0x80):
            damaged = bytearray(document)
            damaged[place] ^= change
            assert not is_sealed(bytes(damaged)), place
        assert not is_sealed(document[:place])
    assert not is_sealed(b"{}")


def test_an_object_swapped_for_another_whole_one_is_named(out: Path) -> None:
    shutil.copy(out / "cells" / "small.parquet", out / "cells" / "wide.parquet")
    shutil.copy(out / "slides" / "small.json", out / "slides" / "glass.json")
    assert said(verify_cellset(out)) >= {("damaged", "cells/wide.parquet"), ("contradiction", "slides/glass.json")}


# ------------------------------------------------------------------------------------- what does not belong


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        "cells/other.csv",
        "cells/.wide.parquet.0123456789ab.tmp",
        "masks/wide.ome.zarr/0/c/9/9",
        "masks/wide.ome.zarr/0/c/0/.0.0123456789ab.tmp",
        "_work/wide/0123/parts/x00000_y00000.arrow",
        "slides/wide.txt",
        "rescored/nobody.parquet",
    ],
)
def test_strays_and_leftovers_are_named(out: Path, name: str) -> None:
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_bytes(b"stray")
    assert said(verify_cellset(out)) == {("stray", name)}


def test_a_symbolic_link_is_named_even_where_it_shows_the_right_bytes(out: Path) -> None:
    (out / "cells" / "small.parquet").rename(out.parent / "elsewhere.parquet")
    (out / "cells" / "small.parquet").symlink_to(out.parent / "elsewhere.parquet")
    assert said(verify_cellset(out)) == {("stray", "cells/small.parquet")}


def test_a_slide_under_way_and_one_asked_for_that_is_not_there_are_named(out: Path) -> None:
    cells = CellSet(out)
    cells.claim("begun")
    report = verify_cellset(out, slide_ids=["wide", "never_run"])
    cells.close()
    assert said(report) == {("unfinished", "_work/begun"), ("missing", "slides/never_run.json")}


def test_a_forgotten_slide_leaves_a_whole_cell_set_and_what_comes_back_is_named(out: Path) -> None:
    table = (out / "cells" / "small.parquet").read_bytes()
    CellSet(out).forget("small")
    assert verify_cellset(out).is_whole
    (out / "cells" / "small.parquet").write_bytes(table)
    assert said(verify_cellset(out)) == {("stray", "cells/small.parquet")}


# ------------------------------------------------------- right bytes that say what cannot be: made, then committed


def put_table(out: Path, table: pa.Table, slide_id: str = "wide") -> None:
    """Put another table in a slide's place, with digests and counts to match."""
    store = ObjectStore(out)
    ontology = read_identity(store).ontology
    with store.publishing(f"cells/{slide_id}.parquet") as file:
        hashing = HashingFile(file)
        with CellTableWriter(hashing, table.schema, ontology=ontology) as writer:
            writer.add(table)
    settle(out, {f"cells/{slide_id}.parquet": hashing.hexdigest()}, cells_sha256=hashing.hexdigest())


def settle(out: Path, digests: dict[str, str], slide_id: str = "wide", **values: Any) -> None:
    """Commit again what was changed by hand."""
    store = ObjectStore(out)
    status = read_status(store, slide_id)
    assert status is not None
    listed = parse_digests(store.get(f"slides/{slide_id}.sha256")) | digests
    document = {**status.to_json(), **values, "objects_sha256": write_digests(store, slide_id, listed)}
    write_status(store, SlideStatus.from_json(document))
    write_slides_table(store)


def table_of(out: Path) -> pa.Table:
    """The cells as a part holds them."""
    table = pq.read_table(out / "cells" / "wide.parquet")
    schema = cell_schema(read_identity(ObjectStore(out)).ontology)
    return pa.table([table.column(name).cast(schema.field(name).type) for name in schema.names], schema=schema)


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    field = table.schema.field(name)
    return table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))


def swap_ids(table: pa.Table) -> pa.Table:
    ids = table["mask_id"].to_numpy().copy()
    ids[0] += 1
    return with_column(table, "mask_id", ids)


def first_changed(name: str, change: Callable[[Any], Any]) -> Callable[[pa.Table], pa.Table]:
    def changed(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        values[0] = change(values[0])
        return with_column(table, name, values)

    return changed


CHANGES: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "a row less": (lambda table: table.slice(1), "has no row in the table"),
    "two rows in another order": (
        lambda table: pa.concat_tables([table.slice(1, 1), table.slice(0, 1), table.slice(2)]),
        "not in Hilbert order",
    ),
    "a row twice": (lambda table: pa.concat_tables([table.slice(0, 1), table]), "ids stand twice"),
    "an id that is not its anchor's": (swap_ids, "do not hold their anchor"),
    "another area": (first_changed("area_um2", lambda area: area + 3), "in another size than area_um2 says"),
    "a confidence that is not its type's": (first_changed("confidence", lambda _: 0.5), "largest type probability"),
    "a type that is not the most probable": (
        first_changed("type_prob", lambda prob: [*prob[1:], prob[0]]),
        "not the most probable",
    ),
    "probabilities that do not sum to 1": (first_changed("type_prob", lambda p: [v / 2 for v in p]), "sum to 1"),
    "two places": (first_changed("x_um", lambda x: x + 4), "are two places"),
    "not a number": (first_changed("solidity", lambda _: float("nan")), "solidity is not a figure"),
    "a box that is not the outline's": (
        first_changed("bbox", lambda box: {**box, "xmax": box["xmax"] + 1}),
        "bbox is not that of the outline",
    ),
    "an outline that crosses itself": (
        first_changed("geometry", lambda rings: [[rings[0][0], rings[0][5], rings[0][2], rings[0][7], rings[0][0]]]),
        "outlines cross themselves|bbox",
    ),
    "an open outline": (first_changed("geometry", lambda rings: [rings[0][:-1]]), "not closed|bbox"),
    "another slide's rows": (
        lambda table: table.set_column(
            0, table.schema.field(0), pc.fill_null(pa.array(["x"] * len(table)), "x").dictionary_encode()
        ),
        "rows are of another slide",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_table_that_says_what_cannot_be_is_told(out: Path, change: str) -> None:
    alter, words = CHANGES[change]
    put_table(out, alter(table_of(out)))
    findings = verify_cellset(out).findings
    assert any(any(word in finding.says for word in words.split("|")) for finding in findings), findings
    assert {finding.kind for finding in findings} == {"contradiction"}
    assert {finding.slide_id for finding in findings} == {"wide"}


def test_the_table_put_back_as_it_was_is_whole(out: Path) -> None:
    before = (out / "cells" / "wide.parquet").read_bytes()
    put_table(out, table_of(out))
    assert (out / "cells" / "wide.parquet").read_bytes() == before
    assert verify_cellset(out).is_whole


def paint(out: Path, key: str, alter: Callable[[np.ndarray], None], *, shard_px: int) -> None:
    """Change a shard's pixels and commit the change."""
    store = ObjectStore(out)
    pixels = np.zeros((shard_px, shard_px), np.uint32)
    for chunk in decode_shard(store.get(key), shard_px=shard_px, dtype=np.dtype("<u4")):
        pixels[chunk.row * 256 : (chunk.row + 1) * 256, chunk.column * 256 : (chunk.column + 1) * 256] = chunk.pixels
    alter(pixels)
    data = encode_shard(chunks_of(pixels), shard_px=shard_px)
    assert data is not None
    store.put(key, data)
    settle(out, {key: hashlib.sha256(data).hexdigest()})


def test_a_mask_that_denies_its_table_is_told(out: Path) -> None:
    def alter(pixels: np.ndarray) -> None:
        first, second = np.unique(pixels[pixels > 0])[:2]
        pixels[pixels == first] = 0
        pixels[pixels == second] = 77

    key = "masks/wide.ome.zarr/0/c/0/0"
    paint(out, key, alter, shard_px=FIELD_PX)
    says = " ".join(finding.says for finding in verify_cellset(out).findings)
    assert "paints mask id 77, which has no row" in says
    assert "2 cells have a row and no pixel" in says
    assert "not those its status was written for" in says
    assert "level 1 is not level 0 sampled" in says


def test_a_pixel_at_the_anchor_is_missed(out: Path) -> None:
    def alter(pixels: np.ndarray) -> None:
        y, x = np.divmod(np.arange(pixels.size), FIELD_PX)
        at_anchor = (pixels.reshape(-1) == 1 + y * 1100 + x).nonzero()[0]
        pixels.reshape(-1)[at_anchor[0]] = 0

    paint(out, "masks/wide.ome.zarr/0/c/0/0", alter, shard_px=FIELD_PX)
    says = " ".join(finding.says for finding in verify_cellset(out).findings)
    assert "1 cells are not painted at their anchor" in says


def test_a_pyramid_that_shows_something_else_is_told(out: Path) -> None:
    key = "masks/wide.ome.zarr/1/c/0/0"
    paint(out, key, lambda pixels: pixels.__setitem__((slice(0, 200), slice(0, 200)), 0), shard_px=2048)
    (finding, *others) = verify_cellset(out).findings
    assert "level 1 is not level 0 sampled" in finding.says
    assert all("level 2 is not level 1 sampled" in other.says for other in others)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"analysed_mm2": 0.01}, "do not add up to the slide"),
        ({"num_cells_by_type": {"neoplastic": 3}}, "by type"),
        ({"num_cells": 7}, "num_cells"),
        ({"model_digest": "other"}, "model_digest is not the cell set's"),
        ({"width_px": 1101}, "is not an array of 700 x 1101"),
        ({"outcome": "done_empty"}, "the slide is done_empty"),
        ({"target_mpp": None}, "does not tell the slide's sizes"),
        ({"mask_digest": "0" * 64}, "not those its status was written for"),
    ],
)
def test_a_status_that_its_slide_denies_is_told(out: Path, values: dict[str, Any], words: str) -> None:
    settle(out, {}, **values)
    findings = verify_cellset(out).findings
    assert any(words in finding.says for finding in findings), findings


def test_a_table_of_slides_that_lags_behind_is_told(out: Path) -> None:
    before = (out / "slides.parquet").read_bytes()
    settle(out, {}, num_attempts=2)
    (out / "slides.parquet").write_bytes(before)
    (finding,) = verify_cellset(out).findings
    assert (finding.kind, finding.where, finding.slide_id) == ("contradiction", "slides.parquet", "wide")


# ------------------------------------------------------------------------------------------------------ the job


def test_the_job_reports_and_its_code_says_whether_all_is_well(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    assert main(["--cells", str(out), "--json", str(report), "--num-workers", "2"]) == 0
    assert json.loads(report.read_text())["is_whole"] is True
    assert "whole" in capsys.readouterr().out
    (out / "cells" / "wide.parquet").unlink()
    slides = out.parent / "elsewhere"
    make_slide(slides / "never_run.tif", width=100, height=90)
    assert main(["--cells", str(out), "--json", str(report), "--bytes-only", "--slides", str(slides)]) == 3
    document = json.loads(report.read_text())
    assert {entry["where"] for entry in document["findings"]} == {"cells/wide.parquet", "slides/never_run.json"}
    told = capsys.readouterr().out
    assert "cells/wide.parquet" in told and "MB/s" in told
    assert main(["--cells", str(tmp_path / "nothing")]) == 2
    assert "no cell set" in capsys.readouterr().err
