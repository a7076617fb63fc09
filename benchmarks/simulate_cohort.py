"""The planner over 100,000 slides and the driver over 100,000 fields, with stages that do nothing else.

    python -m benchmarks.simulate_cohort [--slides 100000] [--fields 100000] [--ray-fields 2000] [--only drive,ray]

Real: listing and naming of the slides, tile grids, fields, strips and their messages; claims, messages, the ledger,
statuses and `slides.parquet` on a disk. Made up: where tissue is, and that a field is done the moment it is asked for.
The last part sends fields through Ray Data as a run does, again with stages that do nothing: what Ray itself costs.
Prints one JSON document; `docs/scale.md` explains it. On a shared machine the CPU seconds, which are those of the one
process that a cohort has one of, say more than the wall time.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import Silence
from cellmill.cohort.committing import CommitResult, SlideCommit
from cellmill.cohort.config import SegmentCohortConfig
from cellmill.cohort.context import RunContext
from cellmill.cohort.engine import Engine, slide_rows
from cellmill.cohort.manifest import SlideSource, list_sources
from cellmill.cohort.pipeline import quieten
from cellmill.cohort.plan import SlidePlan, plan_fields
from cellmill.cohort.rows import Row
from cellmill.cohort.run import run_cohort
from cellmill.cohort.session import ray_session
from cellmill.cohort.sources import CohortModel, NetworkModel
from cellmill.cohort.strips import cut_into_strips
from cellmill.cohort.tiles import TileGrid, Verdict
from cellmill.grid import SlideGrid, TileGeometry
from cellmill.models.loading import load_model
from cellmill.store.objects import ObjectStore
from cellmill.store.statuses import write_status
from cellmill.store.work import FieldCounts, SlideFacts
from cellmill_schemas.slides import SlideStatus

FIELD_PX, HALO_PX = 2048, 128
SLIDE_PX = (16_384, 12_288)
"""A biopsy, 8 x 6 mm at 0.5 um/px: 48 fields if all of it were tissue."""
GEOMETRY = TileGeometry(tile_px=576, margin_px=32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=100_000)
    parser.add_argument("--fields", type=int, default=100_000)
    parser.add_argument("--fields-per-slide", type=int, default=10)
    parser.add_argument("--ray-fields", type=int, default=2_000)
    parser.add_argument("--only", default="list,plan,drive,ray", help="parts to run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cellmill-simulate-") as folder:
        place = Path(folder)
        num_slides = options.fields // options.fields_per_slide
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "list": lambda: list_slides(place, options.slides),
            "plan": lambda: plan_slides(options.slides),
            "drive": lambda: drive(place, num_slides=num_slides, each=options.fields_per_slide),
            "ray": lambda: through_ray(options.ray_fields),
        }
        report: dict[str, Any] = {}
        for name in options.only.split(","):
            started = time.process_time()
            report[name] = parts[name]()
            report[name]["cpu_seconds"] = round(time.process_time() - started, 1)
    print(json.dumps(report, indent=1))


def peak_gb() -> float:
    """Peak resident memory of this process so far, GB of 10^9 bytes."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3)


def write_manifest(place: Path, number: int) -> Path:
    path = place / "manifest.parquet"
    table = pa.table({
        "slide": [f"s3://bucket/slides/{index // 1000:03d}/case-{index:07d}.svs" for index in range(number)],
        "mpp": [0.25] * number,
    })  # fmt: skip
    pq.write_table(table, path)
    return path


def list_slides(place: Path, number: int) -> dict[str, Any]:
    manifest = write_manifest(place, number)
    started = time.perf_counter()
    sources = list_sources([str(manifest)])
    seconds = time.perf_counter() - started
    assert len({source.slide_id for source in sources}) == number
    return {"slides": number, "seconds": round(seconds, 2), "peak_gb": peak_gb()}


def plan_slides(number: int) -> dict[str, Any]:
    """Plan, cut and encode slide after slide, as planners do, one at a time and nothing kept."""
    started = time.perf_counter()
    num_fields = num_bytes = 0
    for index in range(number):
        plan = made_up_plan(f"case-{index:07d}", seed=index)
        num_fields += len(plan.fields)
        for strip in cut_into_strips(plan, plan.fields, num_strips=1):
            row = Row(kind="strip", slide_id=plan.facts.slide_id, document={"strip": strip.to_json()})
            num_bytes += row.to_table().nbytes
    seconds = time.perf_counter() - started
    return {
        "slides": number,
        "fields": num_fields,
        "seconds": round(seconds, 1),
        "slides_per_second": round(number / seconds, 1),
        "message_bytes_per_field": round(num_bytes / num_fields),
        "peak_gb": peak_gb(),
    }


def made_up_plan(slide_id: str, *, seed: int) -> SlidePlan:
    """A slide of the size above with a round piece of tissue somewhere on it."""
    facts = made_up_facts(slide_id)
    tiles = TileGrid.of_slide(facts.grid, GEOMETRY)
    rows, columns = np.indices(tiles.verdicts.shape)
    rng = np.random.default_rng(seed)
    y, x = rng.uniform(0.2, 0.8, 2) * tiles.verdicts.shape
    radius = rng.uniform(0.15, 0.5) * min(tiles.verdicts.shape)
    tiles.verdicts[(rows - y) ** 2 + (columns - x) ** 2 > radius**2] = Verdict.BACKGROUND
    return plan_fields(facts, tiles, geometry=GEOMETRY, field_px=FIELD_PX, halo_px=HALO_PX)


def made_up_facts(slide_id: str) -> SlideFacts:
    width, height = SLIDE_PX
    grid = SlideGrid.of_slide(
        width_level0_px=2 * width, height_level0_px=2 * height, mpp_x=0.25, mpp_y=0.25, target_mpp=0.5
    )
    return SlideFacts(
        slide_id=slide_id,
        grid=grid,
        mpp_x=0.25,
        mpp_y=0.25,
        width_level0_px=2 * width,
        height_level0_px=2 * height,
        slide_fingerprint="0" * 32,
    )


# ------------------------------------------------------------------------------------------ the driver


class InstantEngine:
    """Tells that every field is done as soon as its slide comes; commits write the status and nothing else."""

    def __init__(self, store: ObjectStore, fields_per_slide: int) -> None:
        self.commits = InstantCommits(store)
        self._each = fields_per_slide

    def stream(self, sources: Sequence[SlideSource]) -> Iterator[Row]:
        for source in sources:
            facts = made_up_facts(source.slide_id)
            fields = list(facts.grid.fields(field_px=FIELD_PX, halo_px=HALO_PX))[: self._each]
            document = {
                "facts": asdict(facts),
                "fields": [asdict(field) for field in fields],
                "counts": asdict(FieldCounts()),
                "figures": "",
                "missing": [field.name for field in fields],
            }
            yield Row(kind="planned", slide_id=source.slide_id, document=document)
            for field in fields:
                done = {"field": field.name, "num_cells": 10_000, "analysed_mm2": 1.0}
                yield Row(kind="field", slide_id=source.slide_id, document=done)


class InstantCommits:
    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._results: list[CommitResult] = []

    def add(self, order: SlideCommit) -> None:
        status = SlideStatus(
            slide_id=order.facts.slide_id,
            outcome="done",
            num_fields=len(order.fields),
            num_cells=10_000 * len(order.fields),
            slide_fingerprint=order.facts.slide_fingerprint,
            mpp_x=order.facts.mpp_x,
            mpp_y=order.facts.mpp_y,
        )
        write_status(self._store, status)
        self._results.append(CommitResult(order.facts.slide_id, status))

    def is_busy(self) -> bool:
        return bool(self._results)

    def poll(self) -> list[CommitResult]:
        results, self._results = self._results, []
        return results


def drive(place: Path, *, num_slides: int, each: int) -> dict[str, Any]:
    manifest, out = write_manifest(place, num_slides), place / "out"

    @contextmanager
    def engine(context: RunContext, model: CohortModel, num_workers: int) -> Iterator[Engine]:
        yield InstantEngine(context.store, each)

    config = SegmentCohortConfig(slides=(str(manifest),), out=str(out), device="cpu", field_px=FIELD_PX)
    started = time.perf_counter()
    report = run_cohort(config, NetworkModel(load_model("lite")), progress=Silence(), engine=engine)
    seconds = time.perf_counter() - started
    assert report.all_done, report.statuses[0]
    again = time.perf_counter()
    run_cohort(config, NetworkModel(load_model("lite")), progress=Silence(), engine=engine)
    return {
        "slides": num_slides,
        "fields": num_slides * each,
        "seconds": round(seconds, 1),
        "fields_per_second": round(num_slides * each / seconds, 1),
        "seconds_to_find_all_done": round(time.perf_counter() - again, 1),
        "peak_gb": peak_gb(),
    }


# ------------------------------------------------------------------------------------------ Ray itself


def _tell_fields(table: pa.Table) -> Iterator[pa.Table]:
    """A strip's worth of messages for each slide."""
    row = Row.of_table(table)
    for number in range(_FIELDS_A_STRIP):
        document = {"field": f"x{number:05d}_y00000", "num_cells": 10_000, "analysed_mm2": 1.0}
        yield Row(kind="field", slide_id=row.slide_id, document=document).to_table()


_FIELDS_A_STRIP = 20


def through_ray(num_fields: int) -> dict[str, Any]:
    """Messages through two Ray Data stages, one block a message, as `cohort.pipeline` sends them."""
    sources = [
        SlideSource(f"case-{index:07d}", f"case-{index:07d}.svs") for index in range(num_fields // _FIELDS_A_STRIP)
    ]
    with ray_session(object_store_bytes=256 << 20):
        import ray.data

        quieten()
        one_by_one: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
        seconds = driver_cpu_seconds = 0.0
        for counted in (False, True):  # the first pass starts Ray's own actors
            started, cpu_before = time.perf_counter(), time.process_time()
            chosen = sources if counted else sources[:2]
            dataset = (
                ray.data.from_arrow(slide_rows(chosen))
                .map_batches(lambda table: table, num_cpus=0.2, **one_by_one)
                .map_batches(_tell_fields, num_cpus=0.9, **one_by_one)
            )
            told = sum(1 for _ in dataset.iter_batches(prefetch_batches=0, **one_by_one))
            seconds, driver_cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_before
            assert told == len(chosen) * _FIELDS_A_STRIP
    return {
        "fields": num_fields,
        "seconds": round(seconds, 1),
        "fields_per_second": round(num_fields / seconds, 1),
        "driver_cpu_ms_per_field": round(1e3 * driver_cpu_seconds / num_fields, 2),
    }


if __name__ == "__main__":
    main()
