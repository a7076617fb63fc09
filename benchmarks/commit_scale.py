"""Committing a slide of many cells: seconds, peak memory and bytes a cell.

    python benchmarks/commit_scale.py --num-cells 2000000 8000000

Parts are made first, by another process; the commit then runs in a process of its own, whose peak resident memory is
what the system counted for it. The aim: the same peak for 2 and 8 million cells, at most 0.5 GB; time linear; at most
130 bytes a cell.
"""

import argparse
import json
import math
import multiprocessing
import resource
import shutil
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

from cellmill.grid import Box, SlideGrid
from cellmill.store.cellset import CellSet
from cellmill.store.identity import CellSetIdentity
from cellmill.store.layout import cells_key
from cellmill.store.testing import LatticeTissue
from cellmill.store.work import FieldCounts, SlideFacts, SlideWork
from cellmill_schemas.ontology import get_ontology

FIELD_PX = 2048
SPACING_PX = 20


def slide_of(num_cells: int) -> tuple[LatticeTissue, SlideFacts]:
    """A square slide wholly covered with cells."""
    side_px = math.isqrt(num_cells) * SPACING_PX
    grid = SlideGrid.of_slide(
        width_level0_px=2 * side_px, height_level0_px=2 * side_px, mpp_x=0.25, mpp_y=0.25, target_mpp=0.5
    )
    tissue = LatticeTissue(slide_id="large", grid=grid, tissue=Box(0, 0, side_px, side_px), spacing_px=SPACING_PX)
    return tissue, SlideFacts("large", grid, 0.25, 0.25, 2 * side_px, 2 * side_px, "fingerprint")


def begin(url: str, num_cells: int) -> tuple[CellSet, SlideWork, LatticeTissue]:
    tissue, facts = slide_of(num_cells)
    identity = CellSetIdentity("lattice", "model", "config", {}, get_ontology("refined7"), "benchmark")
    cell_set = CellSet(url).create_or_open(identity)
    cell_set.claim("large")
    work = cell_set.begin_slide(facts, field_px=FIELD_PX, device_kind="cpu")
    assert work is not None
    return cell_set, work, tissue


def make_parts(url: str, num_cells: int) -> None:
    cell_set, work, tissue = begin(url, num_cells)
    for field in work.grid.fields(field_px=FIELD_PX, halo_px=0):
        cell_set.write_part(
            work,
            field=field,
            cells=tissue.cells_in(field.core),
            core_mask=tissue.mask_in(field.core),
            counts=FieldCounts(num_tiles=1, analysed_px=field.core.clipped(work.grid.box).area),
        )
    cell_set.close()


def commit(url: str, num_cells: int) -> None:
    cell_set, work, _ = begin(url, num_cells)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, started_cpu = time.perf_counter(), time.process_time()
    fields = list(work.grid.fields(field_px=FIELD_PX, halo_px=0))
    status = cell_set.commit(work, planned=fields, elsewhere=FieldCounts())
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
    cell_set.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    table = Path(url) / cells_key("large")
    result = {
        "num_cells": status.num_cells,
        "num_fields": len(fields),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "cpu_seconds_per_million_cells": round(cpu_seconds / status.num_cells * 1e6, 2),
        "rss_before_gb": round(before / 1024**2, 3),
        "peak_rss_gb": round(peak / 1024**2, 3),
        "bytes_per_cell": round(table.stat().st_size / status.num_cells, 1),
        "mask_bytes_per_cell": round(
            sum(path.stat().st_size for path in (Path(url) / "masks").rglob("*") if path.is_file()) / status.num_cells,
            1,
        ),
    }
    print(json.dumps(result))
    metadata = pq.ParquetFile(table).metadata
    columns: dict[str, int] = {}
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            columns[chunk.path_in_schema] = columns.get(chunk.path_in_schema, 0) + chunk.total_compressed_size
    print(json.dumps({name: round(size / status.num_cells, 2) for name, size in columns.items()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-cells", type=int, nargs="+", default=[2_000_000, 8_000_000])
    parser.add_argument("--folder", type=Path, default=None, help="where to work; default: a temporary folder")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    for num_cells in arguments.num_cells:
        folder = tempfile.mkdtemp(prefix="commit-scale-", dir=arguments.folder)
        try:
            for step in (make_parts, commit):
                process = context.Process(target=step, args=(folder, num_cells))
                process.start()
                process.join()
                if process.exitcode:
                    raise SystemExit(f"{step.__name__} for {num_cells} cells ended with {process.exitcode}")
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
