"""Counting 100 million cells by type and slide, and reading a region of one slide.

A slide of 2 million made-up cells is committed once; 50 slides are copies of it under names of their own. The copies
are made by overwriting the name in the file's bytes (names are equally long, and the table has no checksums of pages),
which gives what the writer would have written fifty times; each copy's column is read back to be sure. Both queries go
through what users have: `cellmill.open_cells`, or the files themselves in DuckDB.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow.parquet as pq

import cellmill
from benchmarks.commit_scale import SLIDE_ID, make_table, slide_of
from benchmarks.harness import NUM_REPEATS, Row, Spread, timed
from cellmill.store.layout import CELLSET_KEY, SLIDES_TABLE_KEY, cells_key
from cellmill.store.objects import ObjectStore
from cellmill.store.statuses import read_status, write_slides_table, write_status

NUM_SLIDES, CELLS_PER_SLIDE = 50, 2_000_000
REGION_SHARE = 0.01
MAX_SECONDS, MAX_GROUPS = 2.0, 0.05

Counts = dict[tuple[str, str], tuple[int, float]]
"""Cells and cells per mm2 by slide and type."""


@dataclass(frozen=True)
class Region:
    """A box in level-0 px."""

    x0: float
    y0: float
    x1: float
    y1: float


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="cellmill-query-") as folder:
        one, out = Path(folder) / "one", Path(folder) / "out"
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(make_table, str(one), CELLS_PER_SLIDE).result()
        slides = copy_slides(one, out)
        return [_count_row(out), _region_row(out, slides[0])]


def copy_slides(one: Path, out: Path) -> list[str]:
    """Fill `out` with copies of the slide in `one`; returns their names."""
    (out / "cells").mkdir(parents=True)
    shutil.copy(one / CELLSET_KEY, out)
    status = read_status(ObjectStore(one), SLIDE_ID)
    assert status is not None
    data = (one / cells_key(SLIDE_ID)).read_bytes()
    names = [f"s{number:0{len(SLIDE_ID) - 1}d}" for number in range(NUM_SLIDES)]
    for name in names:
        path = out / cells_key(name)
        path.write_bytes(data.replace(SLIDE_ID.encode(), name.encode()))
        column = pq.read_table(path, columns=["slide_id"]).column("slide_id")
        assert column.unique().to_pylist() == [name], name
        write_status(ObjectStore(out), replace(status, slide_id=name))
    write_slides_table(ObjectStore(out))
    return names


# -------------------------------------------------------------------------------------------------------- counting


def _count_row(out: Path) -> Row:
    polars, duck = partial(count_with_polars, out), partial(count_with_duckdb, out)
    found, same = polars(), duck()
    agree = found.keys() == same.keys() and all(
        found[key][0] == same[key][0] and np.isclose(found[key][1], same[key][1]) for key in found
    )
    figures = {name: _repeated(count) for name, count in (("polars", polars), ("DuckDB", duck))}
    num_cells = sum(count for count, _ in found.values())
    return Row(
        name="count by type and density per slide",
        rival="none: polars through cellmill.open_cells (ours), DuckDB on the same files (theirs)",
        ours=figures["polars"][0],
        theirs=figures["DuckDB"][0],
        unit="s",
        ratio=None,
        aim=f"<= {MAX_SECONDS} s over 100 million cells with polars or DuckDB",
        met=agree and min(seconds.median for seconds, _ in figures.values()) <= MAX_SECONDS,
        details={
            "cells": float(num_cells),
            "polars and DuckDB agree": str(agree),
            **{f"CPU s, {name}": cpu.median for name, (_, cpu) in figures.items()},
        },
    )


def count_with_polars(out: Path) -> Counts:
    """Count first, then look up the area: once a slide and type, not once a cell."""
    areas = pl.scan_parquet(out / SLIDES_TABLE_KEY).select(
        pl.col("slide_id").cast(pl.Categorical), mm2=pl.col("analysed_mm2")
    )
    counted = cellmill.open_cells(out).group_by("slide_id", "cell_type").len("cells")
    table = counted.join(areas, on="slide_id").select(
        "slide_id", "cell_type", "cells", per_mm2=pl.col("cells") / pl.col("mm2")
    )
    return {(slide, kind): (n, d) for slide, kind, n, d in table.collect(engine="streaming").iter_rows()}


def count_with_duckdb(out: Path) -> Counts:
    with duckdb.connect() as connection:
        rows = connection.execute(
            f"""WITH counted AS (
                  SELECT slide_id, cell_type, count(*) AS cells FROM '{out}/cells/*.parquet' GROUP BY ALL)
                SELECT slide_id, cell_type, cells, cells / analysed_mm2
                FROM counted JOIN '{out}/{SLIDES_TABLE_KEY}' USING (slide_id)"""
        ).fetchall()
    return {(slide, kind): (n, d) for slide, kind, n, d in rows}


# ---------------------------------------------------------------------------------------------------------- region


def _region_row(out: Path, slide_id: str) -> Row:
    path = out / cells_key(slide_id)
    regions = random_regions(slide_id)
    shares = Spread.of([share_of_groups(path, region) for region in regions])
    seconds = Spread.of([timed(partial(cells_in, out, slide_id, region)) for region in (regions[0], *regions)][1:])
    counted = [cells_in(out, slide_id, region).height for region in regions]
    spread = f"{seconds.median:.3g} ({seconds.least:.3g} to {seconds.most:.3g})"
    return Row(
        name="region of 1 % of a slide of 2 million cells",
        rival="none",
        ours=shares,
        theirs=None,
        unit="of the row groups",
        ratio=None,
        aim=f"< {MAX_GROUPS} of the row groups",
        met=shares.median < MAX_GROUPS,
        details={
            "regions": float(len(regions)),
            "cells found, mean": float(np.mean(counted)),
            "seconds, through open_cells, with outlines": spread,
        },
    )


def random_regions(slide_id: str, *, number: int = 25) -> list[Region]:
    """Squares of 1 % of the slide's area, anywhere in it."""
    _, facts = slide_of(CELLS_PER_SLIDE)
    side = REGION_SHARE**0.5 * facts.width_level0_px
    corners = np.random.default_rng(0).uniform(0, facts.width_level0_px - side, (number, 2))
    return [Region(x, y, x + side, y + side) for x, y in corners.tolist()]


def cells_in(out: Path, slide_id: str, region: Region) -> pl.DataFrame:
    """The cells centred in the region, as a viewer would ask for them."""
    return (
        cellmill.open_cells(out, slide_ids=[slide_id])
        .filter(
            pl.col("x_level0_px").is_between(region.x0, region.x1),
            pl.col("y_level0_px").is_between(region.y0, region.y1),
        )
        .select("cell_id", "cell_type", "geometry")
        .collect(engine="streaming")
    )


def share_of_groups(path: Path, region: Region) -> float:
    """Share of the file's row groups whose range of centres meets the region: those a reader cannot skip."""
    metadata = pq.read_metadata(path)
    names = {metadata.schema.column(index).path: index for index in range(metadata.num_columns)}
    touched = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        x, y = (group.column(names[name]).statistics for name in ("x_level0_px", "y_level0_px"))
        touched += x.max >= region.x0 and x.min <= region.x1 and y.max >= region.y0 and y.min <= region.y1
    return touched / metadata.num_row_groups


def _repeated(count: Callable[[], Counts]) -> tuple[Spread, Spread]:
    """Wall and CPU seconds of `count`, which has run once before."""
    wall: list[float] = []
    cpu: list[float] = []
    for _ in range(NUM_REPEATS):
        started = time.process_time()
        wall.append(timed(count))
        cpu.append(time.process_time() - started)
    return Spread.of(wall), Spread.of(cpu)
