"""A run whose driver is killed half way: nothing of it stays behind, and the same command goes on from there."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import pytest
import zarr
from cohort_helpers import run
from oracle import make_slide

from cellmill.cohort.sources import NetworkModel

FIELD_PX, NUM_FIELDS = 256, 8
# They idle for a minute, telling a Ray that is gone that it is gone, and then end. Names as the system cuts them.
RAYS_AGENTS = {"ray::DashboardAgent", "ray::DashboardA", "ray::RuntimeEnvAgent", "ray::RuntimeEnv"}
# The job as it is, except that it tells its counts at every turn.
JOB = """
from cellmill.cohort import job, progress
progress._PLAIN_SECONDS = 0.0
raise SystemExit(job.main())
"""


class Job:
    """A `segment_cohort` in a session of its own, which Ray's processes share."""

    def __init__(self, slides: Path, out: Path, log: Path) -> None:
        self.log = log
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        arguments = ["--slides", str(slides), "--out", str(out), "--field-px", str(FIELD_PX), "--device", "cpu"]
        with log.open("wb") as file:
            self.driver = subprocess.Popen(
                [sys.executable, "-c", JOB, *arguments, "--num-workers", "2"],
                env=environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def said(self) -> str:
        return self.log.read_text()[-3000:]

    def processes(self) -> list[psutil.Process]:
        """What runs in the job's session, the driver included."""
        return [process for process in psutil.process_iter() if self._owns(process)]

    def _owns(self, process: psutil.Process) -> bool:
        try:
            return os.getsid(process.pid) == self.driver.pid and process.status() != psutil.STATUS_ZOMBIE
        except (OSError, psutil.Error):
            return False

    def names(self) -> set[str]:
        """Names of those processes."""
        names: set[str] = set()
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                names.add(process.name())
        return names

    def names_left(self, *, besides: set[str], within_seconds: float) -> set[str]:
        """Names of the processes that are still there after that time at most."""
        deadline = time.monotonic() + within_seconds
        while (left := self.names() - besides) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left

    def end(self) -> None:
        """End what is left of the job, by process id."""
        for process in self.processes():
            process.kill()
        self.driver.wait()


def parts(out: Path) -> int:
    return sum(1 for _ in (out / "_work").rglob("parts/*.arrow"))


def table_and_mask(out: Path) -> tuple[bytes, np.ndarray]:
    mask = zarr.open_group(out / "masks" / "a.ome.zarr", mode="r")["0"][:]
    return (out / "cells" / "a.parquet").read_bytes(), np.asarray(mask)


@pytest.fixture
def jobs() -> Iterator[list[Job]]:
    """Jobs put here are ended after the test, however it went."""
    started: list[Job] = []
    yield started
    for job in started:
        job.end()


@pytest.mark.timeout(1500)  # two whole jobs with a Ray of their own; most of it is Ray starting
def test_a_killed_job_leaves_no_process_and_the_same_command_does_only_the_missing_fields(
    tmp_path: Path, jobs: list[Job]
) -> None:
    from cellmill.models.loading import load_model, packaged_models

    if "lite" not in packaged_models():
        pytest.skip("the package holds no weights of lite")
    slides, out = tmp_path / "slides", tmp_path / "out"
    make_slide(slides / "a.tif", width=4 * FIELD_PX, height=2 * FIELD_PX)

    killed = Job(slides, out, tmp_path / "killed.log")
    jobs.append(killed)
    deadline = time.monotonic() + 600
    while parts(out) < 1 and time.monotonic() < deadline and killed.driver.poll() is None:
        time.sleep(0.02)
    names = killed.names()
    killed.driver.send_signal(signal.SIGKILL)
    assert killed.driver.wait() == -signal.SIGKILL, killed.said()
    assert {"raylet", "gcs_server"} <= names, names
    assert not killed.names_left(besides=RAYS_AGENTS, within_seconds=60)
    num_done = parts(out)
    assert 1 <= num_done < NUM_FIELDS
    assert not list((out / "cells").glob("*")) and not list((out / "slides").glob("*"))

    again = Job(slides, out, tmp_path / "again.log")
    jobs.append(again)
    assert again.driver.wait(timeout=600) == 0, again.said()
    assert "1 of 1 slides done" in again.said()
    num_left = NUM_FIELDS - num_done
    assert re.findall(r"fields: (\d+)/(\d+)", again.said())[-1] == (str(num_left), str(num_left)), again.said()

    quiet = tmp_path / "quiet"
    assert run(slides, quiet, NetworkModel(load_model("lite")), field_px=FIELD_PX).all_done
    table, mask = table_and_mask(out)
    quiet_table, quiet_mask = table_and_mask(quiet)
    assert table == quiet_table and np.array_equal(mask, quiet_mask)
    assert pl.read_parquet(out / "cells" / "a.parquet").height > 20
    assert not killed.names_left(besides=set(), within_seconds=180)
    assert not again.names_left(besides=set(), within_seconds=60)
