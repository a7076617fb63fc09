"""Committing slides of 2 and of 8 million cells, masks included: the same peak memory, time linear in cells.

Parts are made once, by another process. Every repeat commits a copy of them in a process of its own, whose peak
resident memory is what the system counted for it. The two sizes take turns.
"""

import math
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks.harness import NUM_REPEATS, Row, Spread, compare
from cellmill.grid import Box, SlideGrid
from cellmill.store.cellset import CellSet
from cellmill.store.identity import CellSetIdentity
from cellmill.store.layout import cells_key
from cellmill.store.shards import mask_dtype
from cellmill.store.testing import LatticeTissue
from cellmill.store.work import FieldCounts, SlideFacts, SlideWork
from cellmill_schemas.ontology import get_ontology

SMALL, LARGE = 2_000_000, 8_000_000
MAX_GB, MAX_GROWTH, MAX_TIMES = 0.5, 1.1, 4.4
T = TypeVar("T")

FIELD_PX = 2048
SPACING_PX = 20
SLIDE_ID = "large"


@dataclass(frozen=True)
class Committed:
    """What one commit cost."""

    num_cells: int
    seconds: float
    cpu_seconds: float
    peak_gb: float
    """Peak resident memory of the process, Python and its libraries included; GB of 10^9 bytes."""
    table_bytes: int
    mask_bytes: int


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="cellmill-commit-") as folder:
        parts = {num_cells: Path(folder) / str(num_cells) for num_cells in (SMALL, LARGE)}
        for num_cells, place in parts.items():
            _in_new_process(make_parts, str(place), num_cells)
        return rows_of(parts)


def rows_of(parts: dict[int, Path], *, repeats: int = NUM_REPEATS) -> list[Row]:
    """The rows, from cell sets that hold every part of a slide of so many cells."""
    runs: dict[int, list[Committed]] = {SMALL: [], LARGE: []}

    def turn(num_cells: int) -> float:
        runs[num_cells].append(commit_copy(parts[num_cells], num_cells))
        return runs[num_cells][-1].seconds

    small, large, times = compare(lambda: turn(SMALL), lambda: turn(LARGE), repeats=repeats, warm_ups=0)
    peaks = {num_cells: Spread.of([run.peak_gb for run in found]) for num_cells, found in runs.items()}
    growth = Spread.of([b.peak_gb / a.peak_gb for a, b in zip(runs[SMALL], runs[LARGE], strict=True)])
    details: dict[str, float | str] = {}
    for num_cells, found in runs.items():
        cpu = Spread.of([run.cpu_seconds / run.num_cells * 1e6 for run in found])
        details[f"CPU s per million cells, {num_cells:,}"] = f"{cpu.median:.2f} ({cpu.least:.2f} to {cpu.most:.2f})"
    details["mask bytes per cell"] = runs[SMALL][-1].mask_bytes / runs[SMALL][-1].num_cells
    details["table bytes per cell"] = runs[SMALL][-1].table_bytes / runs[SMALL][-1].num_cells
    return [
        Row(
            name="commit, seconds",
            rival="a slide of 8 million cells (theirs) against one of 2 million (ours)",
            ours=small,
            theirs=large,
            unit="s",
            ratio=times,
            aim=f"theirs / ours <= {MAX_TIMES}",
            met=times.median <= MAX_TIMES,
            details=details,
        ),
        Row(
            name="commit, peak memory",
            rival="a slide of 8 million cells (theirs) against one of 2 million (ours)",
            ours=peaks[SMALL],
            theirs=peaks[LARGE],
            unit="GB",
            ratio=growth,
            aim=f"theirs / ours <= {MAX_GROWTH}; both <= {MAX_GB} GB",
            met=growth.median <= MAX_GROWTH and max(peak.most for peak in peaks.values()) <= MAX_GB,
        ),
    ]


def commit_copy(parts: Path, num_cells: int) -> Committed:
    """Commit a copy of a cell set's parts, in a process of its own."""
    place = parts.with_name(f"{parts.name}-copy")
    # Hard links: a commit replaces and removes objects, it never writes into one.
    shutil.copytree(parts, place, copy_function=os.link)
    try:
        return _in_new_process(commit, str(place), num_cells)
    finally:
        shutil.rmtree(place)


def make_parts(url: str, num_cells: int) -> None:
    """Write every part of the slide, and nothing else."""
    cell_set, work, tissue = _begin(url, num_cells)
    for field in work.grid.fields(field_px=FIELD_PX, halo_px=0):
        cell_set.write_part(
            work,
            field=field,
            cells=tissue.cells_in(field.core),
            core_mask=tissue.mask_in(field.core),
            counts=FieldCounts(num_tiles=1, analysed_px=field.core.clipped(work.grid.box).area),
        )
    cell_set.close()


def commit(url: str, num_cells: int) -> Committed:
    """Commit the slide whose parts lie at `url`, and measure this process."""
    cell_set, work, _ = _begin(url, num_cells)
    import zarr  # noqa: F401  # pyright: ignore[reportUnusedImport] - a driver imports it once, not once a slide

    started, started_cpu = time.perf_counter(), time.process_time()
    fields = list(work.grid.fields(field_px=FIELD_PX, halo_px=0))
    status = cell_set.commit(work, planned=fields, elsewhere=FieldCounts())
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
    cell_set.close()
    masks = (Path(url) / "masks").rglob("*")
    return Committed(
        num_cells=status.num_cells,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        peak_gb=_peak_bytes() / 1e9,
        table_bytes=(Path(url) / cells_key(SLIDE_ID)).stat().st_size,
        mask_bytes=sum(path.stat().st_size for path in masks if path.is_file()),
    )


def make_table(url: str, num_cells: int) -> None:
    """A committed slide with a blank mask, for benchmarks of the table alone."""
    cell_set, work, tissue = _begin(url, num_cells)
    fields = list(work.grid.fields(field_px=FIELD_PX, halo_px=0))
    blank = np.zeros((FIELD_PX, FIELD_PX), mask_dtype(work.grid))
    for field in fields:
        counts = FieldCounts(num_tiles=1, analysed_px=field.core.clipped(work.grid.box).area)
        cell_set.write_part(work, field=field, cells=tissue.cells_in(field.core), core_mask=blank, counts=counts)
    cell_set.commit(work, planned=fields, elsewhere=FieldCounts())
    cell_set.close()


def slide_of(num_cells: int) -> tuple[LatticeTissue, SlideFacts]:
    """A square slide wholly covered with cells."""
    side_px = math.isqrt(num_cells) * SPACING_PX
    grid = SlideGrid.of_slide(
        width_level0_px=2 * side_px, height_level0_px=2 * side_px, mpp_x=0.25, mpp_y=0.25, target_mpp=0.5
    )
    tissue = LatticeTissue(slide_id=SLIDE_ID, grid=grid, tissue=Box(0, 0, side_px, side_px), spacing_px=SPACING_PX)
    return tissue, SlideFacts(SLIDE_ID, grid, 0.25, 0.25, 2 * side_px, 2 * side_px, "fingerprint")


def _begin(url: str, num_cells: int) -> tuple[CellSet, SlideWork, LatticeTissue]:
    tissue, facts = slide_of(num_cells)
    identity = CellSetIdentity("lattice", "model", "config", {}, get_ontology("refined7"), "benchmark")
    cell_set = CellSet(url).create_or_open(identity)
    cell_set.claim(SLIDE_ID)
    work = cell_set.begin_slide(facts, field_px=FIELD_PX, device_kind="cpu")
    assert work is not None
    return cell_set, work, tissue


def _in_new_process(work: Callable[[str, int], T], url: str, num_cells: int) -> T:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, url, num_cells).result()


def _peak_bytes() -> int:
    """Peak resident memory of this process; `ru_maxrss` would count its parent's from before the start."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
