"""The short form of the chaos suite on a Ray cluster, a process of its own: one cohort under fire, one poisoned.

In: a file to write. Out: what happened, as JSON. First a cohort on one node: a second node joins while it runs, a
worker dies in the middle of a write, the first node is taken away (so far tiles are slow, so that a busy machine has
time to start the node), a commit dies. Then slides that crash their reader, hang it, eat memory or end their worker,
beside good ones, as a GPU pool: two workers of half a GPU each, on a node that declares one (nothing here needs a real
one).
"""

import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chaos_checks import assert_as_quiet, lasting_objects
from chaos_cluster import leaks
from chaos_faults import HURRY
from chaos_ray import SETTINGS, Cohort, Driver, Range, Shooter, shooting_range
from cohort_helpers import run
from oracle import OracleModel

from cellmill.store.cellset import CellSet
from cellmill.verify import verify_cellset

POISONED = ("crashes_at_read", "eats_memory", "hangs", "kills_its_worker")
WAIT_SECONDS = 600.0


def main() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder,
        shooting_range(Path(folder), num_nodes=1) as place,
    ):
        report = {"fire": under_fire(place), "poison": poisoned(place), "held": asdict(leaks(place.nodes))}
    Path(sys.argv[1]).write_text(json.dumps(report, indent=1), encoding="utf-8")


def under_fire(place: Range) -> dict[str, Any]:
    """Nodes come and go, processes die; the outputs are those of a quiet run."""
    cohort = place.cohort(0, "disk")
    (first,) = place.nodes.workers
    driver = Driver(place, cohort)
    shooter = Shooter(place, cohort, random.Random(0))
    wait_for(driver, lambda: len(fields(cohort)) > 0)
    place.nodes.add()
    nodes_at_first = {node for node, _, _ in fields(cohort)}
    wait_for(driver, lambda: {node for node, _, _ in fields(cohort)} > nodes_at_first)
    nodes_at_last = {node for node, _, _ in fields(cohort)}
    shooter.shoot("worker killed before its write", driver)
    place.nodes.kill(first)
    cohort.happened["node killed"] += 1
    (cohort.folder / "fuses" / HURRY).touch()
    shooter.shoot("commit killed", driver)
    assert driver.wait(WAIT_SECONDS), driver.said()
    num_drivers = 1
    while not driver.report().get("all_done"):
        num_drivers += 1
        driver = Driver(place, cohort)
        assert driver.wait(WAIT_SECONDS) and num_drivers < 4, driver.said()
    shooter.count()
    assert_as_quiet(cohort.out, place.quiet)
    return {
        "faults": dict(cohort.happened),
        "drivers": num_drivers,
        "nodes_at_first": len(nodes_at_first),
        "nodes_at_last": len(nodes_at_last),
    }


def poisoned(place: Range) -> dict[str, Any]:
    """Slides that take processes down, on workers of half a GPU."""
    place.nodes.restore(0)
    place.nodes.add(num_cpus=2, num_gpus=1)
    slides = place.folder / "poisoned"
    slides.mkdir()
    for name in ("good", "good_too", *POISONED):
        shutil.copy(place.truths / "a.tif", slides / f"{name}.tif")
        shutil.copy(place.truths / "a.truth.npz", slides / f"{name}.truth.npz")
    cohort = place.cohort(1, "disk")
    cohort.slides = str(slides)
    settings = {
        "max_attempts": 2,
        "reader": "bad_readers:open_badly",
        "reader_timeout_seconds": 12,
        "reader_memory_gib": 0.5,
        "device": "cuda",
        "num_workers": 2,
        "seconds_per_tile": 0.02,
        "truths": str(slides),
    }
    driver = Driver(place, cohort, **settings)
    assert driver.wait(WAIT_SECONDS), driver.said()
    statuses = {status.slide_id: status for status in CellSet(cohort.out).statuses()}
    quiet = place.folder / "quiet-good"
    good = [str(slides / f"{name}.tif") for name in ("good", "good_too")]
    assert run(good, quiet, OracleModel(slides), field_px=SETTINGS["field_px"]).all_done
    found = {key: data for key, data in lasting_objects(cohort.out).items() if "good" in key}
    seen = fields(cohort)
    return {
        "statuses": {slide_id: [status.outcome, *status.reasons] for slide_id, status in statuses.items()},
        "good_as_alone": found == lasting_objects(str(quiet)),
        "findings": [asdict(finding) for finding in verify_cellset(cohort.out).findings],
        "workers_killed": len(list(Path(cohort.out).glob("_work/kills_its_worker/attempts/x*/*.json"))),
        "fields_by_node": dict(Counter(node for node, _, _ in seen)),
        "gpus_a_worker": sorted({gpus for _, _, gpus in seen}),
        "gpu_workers": len({pid for _, pid, _ in seen}),
        "gpu_nodes": [node["NodeID"] for node in _alive() if node["Resources"].get("GPU")],
    }


def fields(cohort: Cohort) -> list[tuple[str, int, float]]:
    """Node, process and share of a GPU of each field that was written."""
    path = cohort.folder / "fuses" / ".fields"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [(node, int(pid), float(gpus)) for node, pid, gpus in (line.split(" ") for line in lines)]


def wait_for(driver: Driver, condition: Any) -> None:
    """Until it holds or the driver ended."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition() and driver.is_running() and time.monotonic() < deadline:
        time.sleep(0.1)


def _alive() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


if __name__ == "__main__":
    main()
