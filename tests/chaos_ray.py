"""A cohort on a real Ray cluster under fire: workers, nodes, drivers, readers, disks and the bucket fail by seed.

In: seeds. Out: one JSON line a cohort: what struck, how often the driver was started, and that tables and masks are
byte for byte those of a quiet run, with nothing lost, doubled, half visible, left over or leaked. The cluster is Ray's
own: a head without CPUs and worker nodes of one CPU each, every one a raylet with its own object store, on loopback. A
driver is a process of its own; when it dies or says that not all is done, the same command is run again.
`make chaos` runs it long and goes on where it was stopped; `test_chaos_ray.py` runs one short cohort.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chaos_checks import assert_as_quiet, assert_visible_is_whole, lasting_objects
from chaos_cluster import STORE_BYTES, TESTS, Nodes, fill_object_stores, leaks
from chaos_faults import DRIVER_FUSES, WORKER_FUSES, Fuses
from cohort_helpers import run
from oracle import OracleModel, make_slide
from s3_server import CREDENTIALS, Fault, FaultProxy, fault_proxy, moto_server

NAMES = ("a", "b", "c", "d")
SLIDE = {"width": 1000, "height": 700, "corners": 256}
SETTINGS: dict[str, Any] = {"field_px": 256, "num_workers": 0, "max_attempts": 1_000_000, "reader_timeout_seconds": 20}
SECONDS_PER_TILE = 0.8
S3_FAULTS: tuple[Fault, ...] = ("slow down", "drop", "cut body", "trickle", "lose answer")
SPOT_NOTICE_SECONDS = 3.0
"""In place of the 30 s and more of a cloud: the runs here are as much shorter."""
FUSE_SECONDS = 20.0
"""How long a fuse waits for a process to come by."""
HANG_SECONDS = 420.0
"""A driver that takes longer than this without a fault hangs."""

PLACES = ("disk", "small disk", "bucket")
_MOST_PASSES = {"planner killed": 1, "commit killed": 8, **dict.fromkeys((*DRIVER_FUSES, "disk full (told)"), 20)}
"""How many times a process may pass a place before its fuse strikes; a process that ends before takes it along."""
PATIENT = ("planner killed", "commit killed", *DRIVER_FUSES)
"""Fuses that lie there from a driver's start: their places are reached at its beginning or end only."""
ENDING = ("disk full (told)", "driver killed", "driver told to end", *DRIVER_FUSES)
"""After these the command is run again, which takes longest: few a cohort."""
SURVIVED = (
    *(kind for kind in WORKER_FUSES if kind not in (*PATIENT, *ENDING)),
    "node killed",
    "node lost for good",
    "node added",
    "spot node taken",
    "object store filled",
)
AT_PLACE: dict[str, tuple[str, ...]] = {
    "disk": (),
    "small disk": ("disk full",),
    "bucket": ("bucket fails",) * 6 + ("bucket away",) * 2,
}


@dataclass
class Cohort:
    """One cohort under fire."""

    number: int
    place: str
    out: str
    slides: str
    folder: Path
    happened: Counter[str] = field(default_factory=Counter)
    num_drivers: int = 0
    num_requests_failed: int = 0
    peak_mib: int = 0


@dataclass
class Range:
    """Where cohorts are shot at."""

    folder: Path
    nodes: Nodes
    proxy: FaultProxy
    truths: Path
    quiet: dict[str, bytes]

    def cohort(self, number: int, place: str) -> Cohort:
        """An output, its slides and a folder of fuses, all new."""
        folder = self.folder / f"cohort-{number}"
        (folder / "fuses").mkdir(parents=True)
        slides, out = str(self.truths), str(folder / "out")
        if place == "small disk":
            Path(out).mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", out], check=True)
        elif place == "bucket":
            slides, out = self._upload()
        return Cohort(number, place, out, slides, folder)

    def end(self, cohort: Cohort) -> None:
        """Remove what the cohort left on disks."""
        if cohort.place == "small disk":
            subprocess.run(["umount", "--lazy", cohort.out], check=True)
        shutil.rmtree(cohort.folder)

    def _upload(self) -> tuple[str, str]:
        import fsspec

        self.proxy.fail()
        bucket = f"cells-{uuid.uuid4().hex[:12]}"
        filesystem = fsspec.filesystem("s3")
        filesystem.mkdir(bucket)
        for name in NAMES:
            filesystem.put_file(str(self.truths / f"{name}.tif"), f"{bucket}/slides/{name}.tif")
        return f"s3://{bucket}/slides", f"s3://{bucket}/out"


@contextmanager
def shooting_range(folder: Path, *, num_nodes: int = 2) -> Generator[Range]:
    """A cluster, an S3 server with a proxy that fails on demand, slides, and what a quiet run makes of them."""
    truths = folder / "slides"
    for seed, name in enumerate(NAMES):
        make_slide(truths / f"{name}.tif", seed=seed, **SLIDE)
    with ExitStack() as stack:
        proxy = stack.enter_context(fault_proxy(stack.enter_context(moto_server())))
        os.environ.update(CREDENTIALS, AWS_DEFAULT_REGION="us-east-1", AWS_ENDPOINT_URL=proxy.url)
        os.environ.update(AWS_EC2_METADATA_DISABLED="true")
        os.environ.pop("AWS_PROFILE", None)
        assert run(truths, folder / "quiet", OracleModel(truths), field_px=SETTINGS["field_px"]).all_done
        ray_folder = Path(tempfile.mkdtemp(prefix="r-"))  # sockets' paths must be short
        stack.callback(shutil.rmtree, ray_folder, ignore_errors=True)
        nodes = Nodes(ray_folder)
        stack.callback(nodes.close)
        for _ in range(num_nodes):
            nodes.add()
        yield Range(folder, nodes, proxy, truths, lasting_objects(str(folder / "quiet")))


# ----------------------------------------------------------------------------------------------------- the driver


class Driver:
    """One run of the command."""

    def __init__(self, place: Range, cohort: Cohort, **settings: Any) -> None:
        cohort.num_drivers += 1
        self._report = cohort.folder / f"report-{cohort.num_drivers}.json"
        self.log = cohort.folder / f"driver-{cohort.num_drivers}.log"
        usual = {"seconds_per_tile": SECONDS_PER_TILE, "slide_cache": str(cohort.folder / "cache")}
        settings = {**SETTINGS, **usual, "truths": str(place.truths), **settings}
        arguments = [str(cohort.folder / "fuses"), cohort.slides, cohort.out]
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, str(TESTS / "chaos_faults.py"), *arguments, json.dumps(settings), str(self._report)],
                env={**os.environ, "RAY_ADDRESS": place.nodes.address},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def is_running(self) -> bool:
        return self.process.poll() is None

    def wait(self, seconds: float) -> bool:
        """Whether it ended within that time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=seconds)
        return not self.is_running()

    def report(self) -> dict[str, Any]:
        """What it told at its end; empty when it was killed."""
        return json.loads(self._report.read_text(encoding="utf-8")) if self._report.exists() else {}

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-3000:]


# ------------------------------------------------------------------------------------------------------ the faults


class Shooter:
    """Makes things go wrong while a driver runs."""

    def __init__(self, place: Range, cohort: Cohort, rng: random.Random) -> None:
        self._place = place
        self._cohort = cohort
        self._rng = rng
        self._fuses = Fuses(cohort.folder / "fuses")

    def shoot(self, kind: str, driver: Driver) -> None:
        """Inject one fault; it counts when it struck."""
        if kind in WORKER_FUSES:
            self._burn(kind, driver)
            return
        act: Callable[[Driver], None] = getattr(self, "_" + kind.replace(" ", "_"))
        act(driver)
        self._cohort.happened[kind] += 1

    def lay(self, kinds: Sequence[str]) -> None:
        """Arm fuses for a driver that is about to start: one that ends drivers at a time, all others together."""
        ends = [kind for kind in kinds if kind in DRIVER_FUSES][:1]
        for kind in [*ends, *(kind for kind in kinds if kind not in DRIVER_FUSES)]:
            self._arm(kind)

    def count(self, patient: list[str] | None = None) -> None:
        """Add what fuses did; those that struck are no longer `patient`."""
        for path in self._fuses.folder.glob("*#*"):
            kind = path.name.rsplit("#", 1)[0]
            self._cohort.happened[kind] += 1
            path.unlink()
            if patient is not None and kind in patient:
                patient.remove(kind)

    def _arm(self, kind: str) -> None:
        self._fuses.arm(kind, passes=self._rng.randrange(_MOST_PASSES.get(kind, 3)))

    def _burn(self, kind: str, driver: Driver) -> None:
        self._arm(kind)
        deadline = time.monotonic() + FUSE_SECONDS
        while driver.is_running() and time.monotonic() < deadline and kind not in self._fuses.struck():
            time.sleep(0.1)
        self._fuses.disarm(kind)

    def _driver_killed(self, driver: Driver) -> None:
        driver.process.kill()
        driver.process.wait()

    def _driver_told_to_end(self, driver: Driver) -> None:
        driver.process.terminate()
        assert driver.wait(60), "a driver told to end by SIGTERM is still there after 60 s"

    def _node_killed(self, driver: Driver) -> None:
        nodes = self._place.nodes
        nodes.kill(self._rng.choice(nodes.workers))
        time.sleep(self._rng.uniform(0, 4))
        nodes.add()

    def _node_lost_for_good(self, driver: Driver) -> None:
        nodes = self._place.nodes
        nodes.kill(self._rng.choice(nodes.workers))
        if not nodes.workers:
            nodes.add()

    def _node_added(self, driver: Driver) -> None:
        if len(self._place.nodes.workers) >= 3:
            self._place.nodes.kill(self._place.nodes.workers[0])
        self._place.nodes.add()

    def _spot_node_taken(self, driver: Driver) -> None:
        nodes = self._place.nodes
        nodes.kill(self._rng.choice(nodes.workers), notice_seconds=SPOT_NOTICE_SECONDS)
        nodes.add()

    def _object_store_filled(self, driver: Driver) -> None:
        held = fill_object_stores(self._place.nodes, num_bytes=2 * STORE_BYTES)
        time.sleep(self._rng.uniform(1, 4))
        del held

    def _disk_full(self, driver: Driver) -> None:
        ballast = Path(self._cohort.out) / "ballast.tmp"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        time.sleep(self._rng.uniform(1, 4))
        ballast.unlink()

    def _bucket_fails(self, driver: Driver) -> None:
        kind, number = self._rng.choice(S3_FAULTS), self._rng.randrange(3, 15)
        self._fail_requests([kind] * number, driver, seconds=FUSE_SECONDS)

    def _bucket_away(self, driver: Driver) -> None:
        self._fail_requests(["drop"] * 1_000_000, driver, seconds=self._rng.uniform(3, 10))

    def _fail_requests(self, faults: list[Fault], driver: Driver, *, seconds: float) -> None:
        proxy = self._place.proxy
        proxy.fail(*faults)
        deadline = time.monotonic() + seconds
        while proxy.faults and driver.is_running() and time.monotonic() < deadline:
            time.sleep(0.1)
        self._cohort.num_requests_failed += sum(proxy.seen[fault] for fault in S3_FAULTS)
        proxy.fail()


# ------------------------------------------------------------------------------------------------------ a cohort


def shoot_at_cohort(place: Range, cohort: Cohort, kinds: Sequence[str], rng: random.Random) -> None:
    """Run a cohort while these faults are injected one after another, then let it finish.

    Raises:
        AssertionError: when it hangs, or anything is not as a quiet run leaves it.
    """
    shooter = Shooter(place, cohort, rng)
    patient, left = ([kind for kind in kinds if (kind in PATIENT) == is_patient] for is_patient in (True, False))
    while True:
        shooter.lay(patient)
        driver = Driver(place, cohort)
        try:
            if rng.random() < 0.7:  # at times the fault comes while the run still starts
                _until_under_way(cohort, driver)
            while left and driver.is_running():
                time.sleep(rng.uniform(0, 2))
                shooter.shoot(left.pop(0), driver)
            assert driver.wait(HANG_SECONDS), f"the driver hangs: {driver.said()}"
        finally:
            if driver.is_running():
                driver.process.kill()
                driver.process.wait()
        shooter.count(patient)
        report = driver.report()
        cohort.peak_mib = max(cohort.peak_mib, report.get("peak_mib", 0))
        assert_visible_is_whole(cohort.out, place.quiet)
        if report.get("all_done"):
            break
        assert cohort.num_drivers < 25, f"the driver does not get on: {report} {driver.said()}"
    # What a full disk kept from being tidied up, the same command does.
    assert run([cohort.slides], cohort.out, OracleModel(place.truths), **SETTINGS).all_done
    assert_as_quiet(cohort.out, place.quiet)


def chosen_faults(where: str, rng: random.Random) -> list[str]:
    """What a cohort will meet, in order."""
    survived = [*rng.choices(SURVIVED, k=rng.randrange(8, 13)), *AT_PLACE[where], "planner killed", "commit killed"]
    ending = rng.sample(ENDING, k=rng.randrange(1, 3))
    kinds = [*survived, *ending]
    rng.shuffle(kinds)
    return kinds


def _until_under_way(cohort: Cohort, driver: Driver) -> None:
    """Until a first field is written."""
    deadline = time.monotonic() + HANG_SECONDS
    while driver.is_running() and time.monotonic() < deadline:
        if (cohort.folder / "fuses" / ".fields").exists():
            return
        time.sleep(0.1)


# --------------------------------------------------------------------------------------------------------- all of it


def places() -> tuple[str, ...]:
    """Where outputs can lie here: a small disk is a tmpfs, which takes root."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
        try:
            mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            mounted = False
        if mounted:
            subprocess.run(["umount", folder], check=True)
    return PLACES if mounted else ("disk", "bucket")


def one(place: Range, number: int, kinds: Sequence[str], where: str) -> dict[str, Any]:
    """One cohort; returns its line of the log."""
    rng, started = random.Random(number), time.monotonic()
    place.nodes.restore(2)
    cohort = place.cohort(number, where)
    fault = ""
    held = None
    try:
        shoot_at_cohort(place, cohort, kinds or chosen_faults(where, rng), rng)
        held = leaks(place.nodes)
        if held.processes or held.cpus or held.object_bytes:
            fault = f"leaked: {held}"
    except AssertionError as error:
        fault = str(error)[-2500:] or repr(error)
    finally:
        if not fault:
            place.end(cohort)
    return {
        "number": number,
        "place": where,
        "faults": dict(cohort.happened),
        "drivers": cohort.num_drivers,
        "requests_failed": cohort.num_requests_failed,
        "driver_peak_mib": cohort.peak_mib,
        "held": asdict(held) if held else None,
        "seconds": round(time.monotonic() - started, 1),
        "wrong": fault,
    }


def summary(lines: Sequence[dict[str, Any]]) -> str:
    """The figures of docs/reliability.md."""
    happened: Counter[str] = Counter()
    for line in lines:
        happened.update(line["faults"])
    rows = [f"{number:5d}  {kind}" for kind, number in sorted(happened.items())]
    wrong = [line for line in lines if line["wrong"]]
    requests, drivers, seconds = (
        sum(line[name] for line in lines) for name in ("requests_failed", "drivers", "seconds")
    )
    rows += [
        f"{happened.total()} faults and {requests} failed requests in {len(lines)} cohorts, {drivers} drivers, "
        f"{seconds / 60:.0f} minutes; {len(wrong)} cohorts went wrong",
        *(f"WRONG {line['number']}: {line['wrong']}" for line in wrong),
    ]
    return "\n".join(rows)


def main() -> int:
    """Run until so many faults have struck."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=120, help="faults to inject, those in the log included")
    parser.add_argument("--first", type=int, default=0, help="number, and seed, of the first cohort")
    parser.add_argument("--kinds", default="", help="these faults, comma-separated, in one cohort on a disk")
    parser.add_argument("--place", default="", help="disk, small disk or bucket; default: by seed")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time; run again to go on")
    parser.add_argument("--log", type=Path, default=Path(".chaos/ray.jsonl"), help="what became of each cohort; kept")
    options = parser.parse_args()
    options.log.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in options.log.read_text().splitlines()] if options.log.exists() else []
    started, wheres = time.monotonic(), places()
    kinds = tuple(options.kinds.split(",")) if options.kinds else ()
    with (
        tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder,
        shooting_range(Path(folder)) as place,
    ):
        number = max([options.first - 1, *(line["number"] for line in lines)]) + 1
        while sum(sum(line["faults"].values()) for line in lines) < options.faults:
            where = options.place or random.Random(number).choice(wheres)
            line = one(place, number, kinds, where)
            lines.append(line)
            with options.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            number += 1
            if line["wrong"] or kinds or time.monotonic() - started > options.seconds:
                break
    sys.stdout.write(summary(lines) + "\n")
    return 1 if any(line["wrong"] for line in lines) else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    raise SystemExit(main())
