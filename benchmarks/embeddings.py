"""What embeddings cost: seconds beside those of segmentation, bytes a cell, and seconds of a refit.

    python -m benchmarks.embeddings --slides DATA/slides/CMU-1-Small-Region.svs DATA/slides/HE_example.ome.tif

Everything runs in this process, one thread, twice; the second turn counts, for the first compiles kernels. Seconds of
CPU of this process are given beside the wall's, because other work on the machine slows only the latter. Labels of the
refit are made up: 5 classes in 32 dimensions, 20 groups.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.harness import Silence
from cellmill.cohort.config import SegmentCohortConfig
from cellmill.cohort.engine import serial_engine
from cellmill.cohort.run import run_cohort
from cellmill.embedding.run import embed_cohort, serial_slides
from cellmill.embedding.sources import NetworkEmbeddings
from cellmill.models.loading import load_model
from cellmill_training.refit.fitting import cross_validate, fit_head


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the wall and of this process's CPU."""
    wall, cpu = time.monotonic(), time.process_time()
    work()
    return time.monotonic() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", nargs="+", required=True)
    parser.add_argument("--model", default="lite")
    arguments = parser.parse_args()
    model = NetworkEmbeddings(load_model(arguments.model))
    for turn in ("first", "second"):
        with tempfile.TemporaryDirectory() as folder:
            config = SegmentCohortConfig(slides=tuple(arguments.slides), out=folder, device="cpu", num_workers=1)
            reports = []
            segment = timed(
                lambda config=config, reports=reports: reports.append(
                    run_cohort(config, model, progress=Silence(), engine=serial_engine)
                )
            )
            embed = timed(lambda config=config: embed_cohort(config, model, engine=serial_slides))
            mm2 = sum(status.analysed_mm2 for status in reports[0].statuses)
            cells = sum(status.num_cells for status in reports[0].statuses)
            size = {
                name: sum(path.stat().st_size for path in (Path(folder) / name).rglob("*.parquet"))
                for name in ("cells", "embeddings")
            }
            print(
                f"{turn} turn, {mm2:.2f} mm2, {cells} cells, s a mm2 (wall, CPU): segment {segment[0] / mm2:.2f}, "
                f"{segment[1] / mm2:.2f}; embeddings {embed[0] / mm2:.2f}, {embed[1] / mm2:.2f}. Bytes a cell: table "
                f"{size['cells'] / cells:.1f}, embeddings {size['embeddings'] / cells:.1f}",
                flush=True,
            )
    for num in (1000, 10_000):
        rng = np.random.default_rng(0)
        kinds, groups = rng.integers(0, 5, num), rng.integers(0, 20, num)
        vectors = rng.normal(size=(num, 32)) + 1.2 * np.eye(5, 32)[kinds]
        fit = timed(lambda v=vectors, k=kinds, g=groups: fit_head(v, k, g, num_classes=5, seed=0))
        validate = timed(lambda v=vectors, k=kinds, g=groups: cross_validate(v, k, g, num_classes=5, seed=0))
        print(f"{num} labels: fitted in {fit[1]:.1f} s CPU, cross-validated in {validate[1]:.1f} s CPU", flush=True)


if __name__ == "__main__":
    main()
