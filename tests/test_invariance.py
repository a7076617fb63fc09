"""The invariant: a slide's table is byte-identical and its mask equal for every way of cutting and doing the work."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import pytest
import zarr
from cohort_helpers import RecordedProgress, run
from oracle import OracleModel, make_slide

from cellmill.cohort.config import SegmentCohortConfig
from cellmill.cohort.context import make_context
from cellmill.cohort.engine import serial_engine, slide_rows
from cellmill.cohort.manifest import list_sources
from cellmill.cohort.pipeline import ray_engine
from cellmill.cohort.planning import PlanSlide
from cellmill.cohort.progress import RunTotals
from cellmill.cohort.rows import Row
from cellmill.cohort.run import RunReport
from cellmill.cohort.segmenting import SegmentStrip
from cellmill.cohort.session import ray_session
from cellmill.cohort.sources import NetworkModel
from cellmill.store.cellset import CellSet

TESTS = Path(__file__).parent
# Ray warns about its own settings and leaves its own processes to be collected.
RAYS_OWN = ("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@dataclass(frozen=True)
class Made:
    """What a run made of one slide."""

    table: bytes
    mask: np.ndarray

    def equals(self, other: "Made") -> bool:
        return self.table == other.table and np.array_equal(self.mask, other.mask)


def made(out: Path, slide_id: str) -> Made:
    mask = zarr.open_group(out / "masks" / f"{slide_id}.ome.zarr", mode="r")["0"][:]
    return Made((out / "cells" / f"{slide_id}.parquet").read_bytes(), np.asarray(mask))


def check(report: RunReport) -> None:
    assert report.all_done, [status.reasons for status in report.statuses]


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    make_slide(folder / "a.tif", glass_from_x=1180, corners=256)
    return folder


@pytest.fixture(scope="module")
def reference(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The whole slide as one field."""
    out = tmp_path_factory.mktemp("whole")
    check(run(slides, out, field_px=2048))
    return made(out, "a")


@pytest.fixture(scope="module")
def ray_with_oracle() -> Iterator[None]:
    """One Ray for the runs below, which find it there and use it."""
    import oracle

    with ray_session(object_store_bytes=1 << 28):
        import ray

        # Workers do not see this folder; what lives here travels to them whole.
        ray.cloudpickle.register_pickle_by_value(oracle)
        yield
        ray.cloudpickle.unregister_pickle_by_value(oracle)


@pytest.mark.parametrize("field_px", [256, 512, 1024])
def test_cells_do_not_depend_on_field_size(slides: Path, reference: Made, tmp_path: Path, field_px: int) -> None:
    check(run(slides, tmp_path, field_px=field_px))
    assert made(tmp_path, "a").equals(reference)


@pytest.mark.parametrize("num_workers", [1, 5])
def test_cells_do_not_depend_on_how_strips_are_cut(
    slides: Path, reference: Made, tmp_path: Path, num_workers: int
) -> None:
    check(run(slides, tmp_path, field_px=256, num_workers=num_workers))
    assert made(tmp_path, "a").equals(reference)


def test_cells_do_not_depend_on_reading_ahead_and_finishing_beside(
    slides: Path, reference: Made, tmp_path: Path
) -> None:
    check(run(slides, tmp_path, field_px=256, engine=partial(serial_engine, num_readers=3, num_finishers=2)))
    assert made(tmp_path, "a").equals(reference)


def test_a_strip_done_again_is_told_from_its_parts(slides: Path, tmp_path: Path) -> None:
    context = make_context(
        SegmentCohortConfig(slides=(str(slides),), out=str(tmp_path), field_px=256),
        OracleModel(slides),
        device="cpu",
        secret=None,
    )
    (source,) = list_sources((str(slides / "a.tif"),))
    cells = CellSet(str(tmp_path)).create_or_open(context.identity)
    cells.claim("a")
    (planned, *strips) = (Row.of_table(table) for table in PlanSlide(context)(slide_rows([source])[0]))
    segment = SegmentStrip(context, lambda: OracleModel(slides))
    try:
        first = [table.to_pylist() for table in segment(strips[0].to_table())]
        left_out = strips[0].document["strip"]["fields"][3]
        (part,) = (tmp_path / "_work").rglob(f"parts/x{left_out['column']:05d}_y{left_out['row']:05d}.arrow")
        part.unlink()
        begun = time.time_ns()
        assert [table.to_pylist() for table in segment(strips[0].to_table())] == first
    finally:
        segment.close()
        cells.close()
    written = [path for path in (tmp_path / "_work").rglob("parts/*.arrow") if path.stat().st_mtime_ns >= begun]
    assert planned.kind == "planned" and len(first) == 24
    assert written == [part]


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.filterwarnings(*RAYS_OWN)
@pytest.mark.usefixtures("ray_with_oracle")
def test_cells_do_not_depend_on_workers(slides: Path, reference: Made, tmp_path: Path, num_workers: int) -> None:
    check(run(slides, tmp_path, engine=ray_engine, num_workers=num_workers))
    assert made(tmp_path, "a").equals(reference)


def parts(out: Path) -> int:
    return sum(1 for _ in (out / "_work").rglob("parts/*.arrow"))


DRIVER = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from cohort_helpers import run
from oracle import OracleModel
run(sys.argv[2], sys.argv[3], OracleModel(Path(sys.argv[2]), seconds_per_tile=0.05), field_px=256)
"""


def test_a_killed_driver_leaves_only_missing_fields_to_do(slides: Path, reference: Made, tmp_path: Path) -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(TESTS), str(slides), str(tmp_path)])
    deadline = time.monotonic() + 300
    while parts(tmp_path) < 4 and time.monotonic() < deadline and driver.poll() is None:
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    num_done = parts(tmp_path)
    assert 4 <= num_done < 20
    assert not list((tmp_path / "cells").glob("*")) and not list((tmp_path / "slides").glob("*"))
    progress = RecordedProgress()
    check(run(slides, tmp_path, field_px=256, progress=progress))
    assert progress.num_fields == 24 - num_done
    assert made(tmp_path, "a").equals(reference)


@pytest.mark.filterwarnings(*RAYS_OWN)
@pytest.mark.usefixtures("ray_with_oracle")
def test_a_killed_worker_is_replaced(slides: Path, reference: Made, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_one(totals: RunTotals) -> None:
        if not killed and totals.num_fields_done >= 2:
            workers = [p for p in psutil.process_iter(["cmdline"]) if _segments(p)]
            killed.append(workers[0].pid)
            os.kill(workers[0].pid, signal.SIGKILL)

    progress = RecordedProgress(on_update=kill_one)
    model = OracleModel(slides, seconds_per_tile=0.02)
    check(run(slides, tmp_path, model, engine=ray_engine, field_px=256, progress=progress))
    assert killed
    assert made(tmp_path, "a").equals(reference)


def _segments(process: psutil.Process) -> bool:
    try:
        return "SegmentStrip" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def test_another_device_or_field_size_discards_parts_and_gives_the_same_cells(
    slides: Path, reference: Made, tmp_path: Path
) -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(TESTS), str(slides), str(tmp_path)])
    deadline = time.monotonic() + 300
    while parts(tmp_path) < 2 and time.monotonic() < deadline and driver.poll() is None:
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    progress = RecordedProgress()
    check(run(slides, tmp_path, field_px=512, progress=progress))
    assert progress.num_fields == 6
    assert made(tmp_path, "a").equals(reference)


@pytest.fixture(scope="module")
def lite() -> NetworkModel:
    from cellmill.models.loading import load_model, packaged_models

    if "lite" not in packaged_models():
        pytest.skip("the package holds no weights of lite")
    return NetworkModel(load_model("lite"))


def test_real_cells_of_a_real_slide_do_not_depend_on_field_size(
    shared_data: Path, tmp_path: Path, lite: NetworkModel
) -> None:
    slide, found = shared_data / "slides" / "HE_example.ome.tif", []
    for field_px in (2048, 1024, 512):
        check(run(slide, tmp_path / str(field_px), lite, field_px=field_px))
        found.append(made(tmp_path / str(field_px), "HE_example"))
    assert pl.read_parquet(found[0].table).height > 500
    assert found[1].equals(found[0]) and found[2].equals(found[0])


def test_a_real_aperio_slide_gives_the_same_cells_in_parts(
    shared_data: Path, tmp_path: Path, lite: NetworkModel
) -> None:
    slide, found = shared_data / "slides" / "CMU-1-Small-Region.svs", []
    for field_px in (4096, 1536):
        check(run(slide, tmp_path / str(field_px), lite, field_px=field_px))
        found.append(made(tmp_path / str(field_px), "CMU-1-Small-Region"))
    assert pl.read_parquet(found[0].table).height > 1000
    assert found[1].equals(found[0])
    assert_nothing_private(tmp_path)


def assert_nothing_private(out: Path) -> None:
    """Neither the label's and macro's pixels nor the header's fields of CMU-1-Small-Region."""
    header = (b"Aperio", b"ScanScope", b"CPAPERIOCS", b"b414003d", b"1004486", b"12/29/09", b"09:59:15", b"USM Filter")
    for path in out.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [field for field in header if field in content], path
            assert not content.startswith((b"\xff\xd8", b"\x89PNG", b"II*\0")), path
            assert path.suffix in ("", ".json", ".parquet", ".sha256"), path
