"""Estimates: the arithmetic on fixed rates, what is counted, what is said of slides that cannot be done, and one real
comparison with a run."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from cohort_helpers import RecordedProgress
from oracle import make_slide

from cellmill.cohort.config import SegmentCohortConfig
from cellmill.cohort.context import make_context
from cellmill.cohort.engine import serial_engine
from cellmill.cohort.manifest import SlideSource, list_sources
from cellmill.cohort.run import run_cohort
from cellmill.cohort.sources import NetworkModel
from cellmill.estimate.calibration import CalibrationWorker, Density, Measured, WorkerStart, choose_pieces
from cellmill.estimate.config import EstimateCohortConfig
from cellmill.estimate.cost import Rates, Workers, Workload, estimate_cost, makespan
from cellmill.estimate.job import main
from cellmill.estimate.rates import rates_of, sureness_of
from cellmill.estimate.spending import Spent, cpu_seconds
from cellmill.estimate.survey import SlideSurvey, choose_slides, survey_slide

# Ray warns about its own settings and leaves its own processes to be collected.
RAYS_OWN = ("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

RATES = Rates(
    plan_slide=Spent(2.0, 1.0),
    open_strip=Spent(1.0, 1.0),
    read_tile=Spent(0.1, 0.05),
    predict_tile=Spent(0.5, 0.5),
    finish_mm2=Spent(1.0, 1.0),
    commit_mm2=Spent(0.25, 0.25),
    start_run=Spent(10.0, 5.0),
    start_worker=Spent(20.0, 15.0),
    cells_per_mm2=5000.0,
    table_bytes_per_cell=100.0,
    mask_bytes_per_cell=50.0,
    peak_bytes=1e9,
    peak_window_px=400_000,
)
WORK = Workload(
    num_slides=10,
    slide_mm2=200.0,
    analysed_mm2=100.0,
    num_tiles=1500,
    num_predictions=1600,
    num_fields=40,
    window_mm2=120.0,
    num_strips=20,
)
WORKERS = Workers(num_workers=2, num_cpus=2.0, num_readers=1, num_finishers=0, uses_gpu=False, window_px=1000)


def test_cpu_hours_are_the_sum_of_what_each_step_takes() -> None:
    cost = estimate_cost(WORK, RATES, WORKERS)
    steps = {"plan": 20, "read": 160 + 20, "predict": 800, "finish": 120, "commit": 25, "start": 50}
    assert {name: hours * 3600 for name, hours in cost.cpu_hours_by_step.items()} == pytest.approx(steps)
    assert cost.cpu_hours * 3600 == pytest.approx(sum(steps.values()))
    assert cost.num_cells == 500_000
    assert (cost.table_gb, cost.mask_gb, cost.output_gb) == pytest.approx((0.05, 0.025, 0.075))
    assert cost.memory_gb_per_worker == pytest.approx(1.0 + 600_000 * 30e-9)


def test_wall_time_is_bound_by_the_cpus_or_by_the_workers() -> None:
    around = 5 + 15 + 1 + 25 / 10
    by_cpus = estimate_cost(WORK, RATES, WORKERS).wall_hours * 3600
    assert by_cpus == pytest.approx(around + (20 + 180 + 800 + 120 + 25) / 2)
    many = Workers(num_workers=2, num_cpus=64.0, num_readers=1, num_finishers=0, uses_gpu=False, window_px=1000)
    assert estimate_cost(WORK, RATES, many).wall_hours * 3600 == pytest.approx(around + (800 + 120) / 2)


def test_a_gpu_waits_for_whatever_beside_it_is_slowest() -> None:
    gpu = Workers(num_workers=1, num_cpus=64.0, num_readers=8, num_finishers=4, uses_gpu=True, window_px=1000)
    cost = estimate_cost(WORK, RATES, gpu)
    assert cost.gpu_hours * 3600 == pytest.approx(800)
    assert cost.wall_hours * 3600 == pytest.approx(5 + 15 + 1 + 2.5 + 800)
    slow = Workload(**{**WORK.__dict__, "window_mm2": 12_000.0})
    assert estimate_cost(slow, RATES, gpu).wall_hours * 3600 == pytest.approx(5 + 15 + 1 + 2.5 + 12_000 / 4)


def test_the_last_strip_done_alone_lengthens_the_wall_time() -> None:
    assert makespan([3, 3, 4], num_workers=2) == 7
    many = Workers(num_workers=2, num_cpus=64.0, num_readers=1, num_finishers=0, uses_gpu=False, window_px=1000)
    even = estimate_cost(WORK, RATES, many, strips=[800, 800]).wall_hours
    uneven = estimate_cost(WORK, RATES, many, strips=[400, 400, 800]).wall_hours
    assert (uneven - even) * 3600 == pytest.approx((800 + 120) * (1200 / 1600 - 1 / 2))


def test_more_workers_cost_the_same_cpu_but_for_their_start() -> None:
    more = Workers(num_workers=64, num_cpus=64.0, num_readers=1, num_finishers=0, uses_gpu=False, window_px=1000)
    few, many = estimate_cost(WORK, RATES, WORKERS), estimate_cost(WORK, RATES, more)
    assert (many.cpu_hours - few.cpu_hours) * 3600 == pytest.approx(62 * 20)
    assert many.wall_hours < few.wall_hours / 5


def survey_of(tmp_path: Path, **settings: Any) -> tuple[SlideSurvey, Any]:
    make_slide(tmp_path / "slides" / "a.tif", width=2000, height=1400, glass_from_x=1200)
    from cellmill.models.loading import load_model

    config = SegmentCohortConfig(slides=(str(tmp_path / "slides"),), out=str(tmp_path / "out"), **settings)
    context = make_context(config, NetworkModel(load_model("lite")), device="cpu", secret=None)
    (source,) = list_sources(config.slides)
    survey = survey_slide(source, context, num_strips=2)
    assert isinstance(survey, SlideSurvey)
    return survey, context


def test_tiles_along_a_cut_between_strips_count_twice(tmp_path: Path) -> None:
    survey, _ = survey_of(tmp_path, field_px=1024)
    assert survey.work.num_strips == len(survey.strips) == 2
    assert survey.work.num_predictions == sum(survey.strips) > survey.work.num_tiles
    assert survey.work.window_mm2 > survey.work.analysed_mm2 > 0.35 * survey.work.slide_mm2


def test_pieces_lie_on_tissue_and_never_overlap(tmp_path: Path) -> None:
    survey, context = survey_of(tmp_path, field_px=512)
    pieces = choose_pieces([survey], context, at_most=50)
    cores = [piece.task.field.core for piece in pieces]
    assert 4 <= len(cores) == len({(core.x0, core.y0) for core in cores})
    assert all(core.width == 512 and core.x0 % 512 == 0 for core in cores)
    assert all(len(piece.task.tiles.analysed()) for piece in pieces)
    fewer = choose_pieces([survey], context, at_most=2)
    assert [piece.task.field.core for piece in fewer] == cores[:2]


def test_a_sample_of_slides_is_spread_over_the_list() -> None:
    sources = [SlideSource(f"s{number}", f"/slides/{number}.svs") for number in range(1000)]
    chosen = [int(source.slide_id[1:]) for source in choose_slides(sources, at_most=10)]
    assert chosen == list(range(50, 1000, 100))
    assert choose_slides(sources[:7], at_most=10) == sources[:7]
    assert len(choose_slides([SlideSource("r", f"s3://b/{number}.svs") for number in range(50)], at_most=200)) == 8


def measured(cells: Sequence[int]) -> Measured:
    return Measured(
        pieces=tuple(Density(number, 0.5) for number in cells),
        num_tiles=50,
        window_mm2=4.0,
        num_opened=2,
        table_bytes=80_000,
        mask_bytes=40_000,
        open=Spent(2.0, 2.0),
        read=Spent(5.0, 5.0),
        predict=Spent(10.0, 10.0),
        finish=Spent(2.0, 2.0),
        commit=Spent(1.0, 1.0),
        window_px=1_000_000,
        peak_bytes=150_000_000,
    )


def test_rates_divide_what_was_measured(tmp_path: Path) -> None:
    survey, _ = survey_of(tmp_path)
    starts = [WorkerStart(Spent(12.0, 8.0))] * 2
    rates = rates_of([survey], measured([300, 500]), starts, run=Spent(3.0, 1.0))
    assert rates.predict_tile.cpu_seconds == pytest.approx(0.2)
    assert rates.finish_mm2.cpu_seconds == pytest.approx(0.5)
    assert rates.commit_mm2.cpu_seconds == pytest.approx(1.0)
    assert rates.cells_per_mm2 == pytest.approx(800)
    assert (rates.table_bytes_per_cell, rates.mask_bytes_per_cell) == pytest.approx((100, 50))
    assert rates.start_worker.cpu_seconds == pytest.approx(12 - (9 + 1))  # less one piece: 18 / 2, and its opening
    assert (rates.peak_bytes, rates.peak_window_px) == (150_000_000, 1_000_000)


def test_what_was_not_looked_at_widens_the_error(tmp_path: Path) -> None:
    survey, _ = survey_of(tmp_path)
    alike, unlike = (sureness_of([survey] * 2, measured(cells), num_slides=9) for cells in ([400, 400], [300, 500]))
    assert alike.cells_error == 0.0 < unlike.cells_error
    assert unlike.area_error == 0.0  # the slides are alike
    assert sureness_of([survey], measured([400]), num_slides=9).area_error == math.inf


def test_settings_are_those_of_the_run(tmp_path: Path) -> None:
    config = EstimateCohortConfig(slides=("a.svs",), field_px=2048, mpp=0.25, reader_memory_gib=1.0)
    run = config.of_run(out="out")
    assert (run.slides, run.field_px, run.mpp, run.reader_memory_gib, run.out) == (("a.svs",), 2048, 0.25, 1.0, "out")
    for wrong in ({"field_px": 100}, {"mpp": 0.0}, {"sample_slides": 0}, {"calibration_seconds": 0.1}):
        with pytest.raises(ValueError, match="--" + next(iter(wrong)).replace("_", "-")):
            EstimateCohortConfig(slides=("a.svs",), **wrong)
    with pytest.raises(ValueError, match="--slides"):
        EstimateCohortConfig()


def test_a_device_that_is_not_here_is_not_guessed_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    make_slide(tmp_path / "a.tif", width=400, height=300)
    assert main(["--slides", str(tmp_path / "a.tif"), "--device", "cuda"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.filterwarnings(*RAYS_OWN)
def test_slides_that_cannot_be_done_are_listed_and_the_others_estimated(
    tmp_path: Path, ray_session: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slides = tmp_path / "slides"
    make_slide(slides / "good.tif", width=1200, height=900)
    (slides / "broken.svs").write_bytes(b"no slide")
    monkeypatch.chdir(tmp_path)
    before = sorted(path for path in tmp_path.rglob("*"))
    arguments = ["--slides", str(slides), "--device", "cpu", "--calibration-seconds", "1", "--num-workers", "64"]
    assert main([*arguments, "--json", str(tmp_path / "estimate.json")]) == 3
    told = capsys.readouterr().out
    assert "broken: cannot be done" in told and "scaled up from" in told
    document = json.loads((tmp_path / "estimate.json").read_text())
    assert [slide["slide_id"] for slide in document["unusable"]] == ["broken"]
    assert document["estimate"]["num_slides"] == 1 and document["estimate"]["num_workers"] == 64
    assert document["wall_time_is_scaled"] is True
    assert 0.1 < document["estimate"]["analysed_mm2"] <= document["estimate"]["slide_mm2"] == pytest.approx(0.27)
    assert sorted(path for path in tmp_path.rglob("*")) == sorted([*before, tmp_path / "estimate.json"])


@dataclass(frozen=True)
class TimedModel:
    """A network whose opening is timed: a run's CPU seconds without it are its work."""

    model: NetworkModel
    opening: list[float]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def open(self, **settings: Any) -> Any:
        before = cpu_seconds()
        source = self.model.open(**settings)
        self.opening.append(cpu_seconds() - before)
        return source


@pytest.mark.slow
def test_the_run_takes_what_was_estimated(tmp_path: Path) -> None:
    from cellmill.models.loading import load_model
    from cellmill.synthetic.cohort import SyntheticCohortConfig, make_synthetic_cohort

    make_synthetic_cohort(SyntheticCohortConfig(out=str(tmp_path), num_slides=2, width_mm=1.5, height_mm=1.5, seed=5))
    model = NetworkModel(load_model("lite"))
    config = SegmentCohortConfig(slides=(str(tmp_path / "slides"),), out=str(tmp_path / "out"), device="cpu")
    context = make_context(config, model, device="cpu", secret=None)
    surveys = [survey_slide(source, context, num_strips=1) for source in list_sources(config.slides)]
    assert all(isinstance(survey, SlideSurvey) for survey in surveys), surveys
    usable = [survey for survey in surveys if isinstance(survey, SlideSurvey)]
    pieces = choose_pieces(usable, context, at_most=4)
    worker = CalibrationWorker(context, lambda: model)
    start, found = worker.start(pieces[0]), worker.measure(pieces, seconds=60.0)
    worker.close()
    assert not (tmp_path / "out").exists()
    cost = estimate_cost(
        usable[0].work.plus(usable[1].work), rates_of(usable, found, [start], run=Spent()), WORKERS, strips=[1]
    )

    timed, before = TimedModel(model, []), cpu_seconds()
    report = run_cohort(config, timed, progress=RecordedProgress(), engine=serial_engine)  # type: ignore[arg-type]
    worked = cpu_seconds() - before - sum(timed.opening)
    excluded = [s.excluded.unreadable_mm2 + s.excluded.pen_mm2 + s.excluded.blur_mm2 for s in report.statuses]
    assert cost.analysed_mm2 == pytest.approx(sum(s.analysed_mm2 for s in report.statuses) + sum(excluded), abs=1e-4)
    assert cost.num_fields == sum(status.num_fields for status in report.statuses)
    assert cost.num_cells == pytest.approx(sum(status.num_cells for status in report.statuses), rel=0.25)
    written = [path for name in ("cells", "masks") for path in (tmp_path / "out" / name).rglob("*") if path.is_file()]
    assert cost.output_gb == pytest.approx(sum(path.stat().st_size for path in written) * 1e-9, rel=0.3)
    estimated = (cost.cpu_hours - cost.cpu_hours_by_step["start"]) * 3600
    assert 0.5 < estimated / worked < 2.0, (estimated, worked)  # others use the machine too


def _cpu_seconds_of(command: list[str]) -> float:
    """CPU seconds of a command with all that it starts: looked at while they live, since a killed server tells no one
    what it took."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    seconds: dict[int, float] = {}
    while process.poll() is None:
        try:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        except psutil.Error:
            break
        for member in family:
            with suppress(psutil.Error):
                times = member.cpu_times()
                seconds[member.pid] = times.user + times.system
        time.sleep(0.2)
    assert process.wait() == 0
    return sum(seconds.values())


@pytest.mark.slow
def test_the_start_of_ray_is_in_the_estimate(tmp_path: Path) -> None:
    """On so small a slide it is most of what there is."""
    from cellmill.synthetic.cohort import SyntheticCohortConfig, make_synthetic_cohort

    make_synthetic_cohort(SyntheticCohortConfig(out=str(tmp_path), num_slides=1, width_mm=0.8, height_mm=0.8, seed=5))
    settings = ["--slides", str(tmp_path / "slides"), "--num-workers", "2", "--threads-per-worker", "1"]
    jobs = Path(__file__).resolve().parents[1] / "jobs"
    told = str(tmp_path / "estimate.json")
    _cpu_seconds_of([sys.executable, str(jobs / "estimate_cohort.py"), *settings, "--json", told])
    estimate = json.loads(Path(told).read_text(encoding="utf-8"))["estimate"]
    taken = _cpu_seconds_of([sys.executable, str(jobs / "segment_cohort.py"), *settings, "--out", str(tmp_path / "o")])
    estimated = estimate["cpu_hours"] * 3600
    assert estimate["cpu_hours_by_step"]["start"] > 0.5 * estimate["cpu_hours"]
    assert 0.7 < estimated / taken < 1.4, (estimated, taken)  # others use the machine too
