"""The whole training chain on made-up tissue, job by job, and its table: what `make train-demo` runs.

Two synthetic data sets that leave open what the other knows -> relabel -> pretrain a tiny encoder on unlabelled tissue
-> teacher and ResNet50 baseline -> student with and without the teacher -> evaluate all on tissue nobody has seen ->
promote, and refuse -> a cohort segmented by the champion. Each step is the job a lab would run, with its own flags. A
step that is done is not done again, so a demo that was cut off goes on with the step it was in.
"""

import contextlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cellmill.arguments import parse_dataclass

__all__ = ["SIZES", "DemoSize", "TrainDemoSettings", "main", "results_table"]

MODEL_NAME = "cellmill-demo"
_FIRST_TRUTH_SEED, _TRUTH_SIDE_PX, _TRUTH_MPP = 430_000, 800, 0.25
_MODELS = {
    "teacher": "teacher/model",
    "resnet50 baseline": "baseline/model",
    "student, taught": "student/t14-alpha_soft/model",
    "student, alone": "student/alone/model",
}


@dataclass(frozen=True)
class DemoSize:
    """How much of everything."""

    images_each: int
    """Of each of the two data sets, 200 um wide."""
    relabel_epochs: int
    """Passes of the classifiers."""
    encoder_steps: int
    """Of masked autoencoding."""
    synthetic_regions: int
    """Unlabelled regions beside the data sets' training images."""
    teacher_steps: int
    """Of the teacher and of the baseline."""
    student_steps: int
    """Of the student, with and without the teacher."""
    truth_images: int
    """Of the test set, 200 um wide, whose every type is known."""
    slide_mm: float
    """Side of the slide that the champion segments."""


SIZES: dict[str, DemoSize] = {
    "small": DemoSize(8, 1, 6, 1, 4, 4, 2, 0.25),
    "demo": DemoSize(150, 12, 400, 8, 150, 200, 8, 0.5),
}


@dataclass(frozen=True)
class TrainDemoSettings:
    """Settings of the demonstration.

    Args:
        out: folder for everything; a demo that was cut off goes on from here.
        size: demo trains long enough to compare (107 minutes on one thread of a busy machine); small goes through
            every step in a few minutes and shows nothing.
        data: folder with local sets of real tissue (docs/models/training.md), whose pixels the encoder learns from too.
            Default: synthetic tissue alone.
        num_workers: Ray Train workers of every stage; 0 trains in this process.
        cpus_per_worker: CPU cores to train on.
        seed: of slides, weights and crops.
    """

    out: str = "demo/train"
    size: Literal["demo", "small"] = "demo"
    data: str = ""
    num_workers: int = 1
    cpus_per_worker: int = 2
    seed: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chain and print its table; 0 when every step did what it should."""
    settings = parse_dataclass(
        TrainDemoSettings, prog="train-demo", description="Run the training chain on small data.", arguments=arguments
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from cellmill.cohort.session import ray_session

    out = Path(settings.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    chain = _Chain(settings, Path(settings.data).resolve() if settings.data else None)
    # In the folder, so that every job finds the same mlflow.db, and with one Ray for all of them.
    with contextlib.chdir(out), ray_session(object_store_bytes=256 << 20):
        seconds = {name: _once(name, step) for name, step in chain.steps().items()}
        table = results_table(Path(), seconds)
        Path("results.md").write_text(table + "\n", encoding="utf-8")
    sys.stdout.write(f"\n{table}\n\nIn {out}: results.md, mlflow.db, relabel/refined/report.html, evaluation/*\n")
    return 0


class _Chain:
    """The steps, each a job with its flags; paths are within the demo's folder."""

    def __init__(self, settings: TrainDemoSettings, data: Path | None) -> None:
        self.size = SIZES[settings.size]
        self.seed = str(settings.seed)
        self.data = data
        self.relabel_workers = ["--num-workers", str(settings.num_workers)]
        self.relabel_workers += ["--cpus-per-worker", str(settings.cpus_per_worker)]
        self.workers = [*self.relabel_workers, "--device", "cpu"]

    def steps(self) -> dict[str, Callable[[], None]]:
        """In order."""
        return {
            "relabel": self.relabel,
            "truth": self.truth,
            "pretrain": self.pretrain,
            "teacher": self.teacher,
            "baseline": self.baseline,
            "distil": self.distil,
            "evaluate": self.evaluate,
            "promote": self.promote,
            "refuse": self.refuse,
            "segment": self.segment,
        }

    def relabel(self) -> None:
        """Write the two data sets and settle what each leaves open."""
        from cellmill_training.relabel.demo import main as relabel_demo

        if not Path("relabel/truth.json").is_file():  # cut off while the data sets were written, each of them once
            shutil.rmtree("relabel", ignore_errors=True)
        size = self.size
        flags = ["--num-images", str(size.images_each), "--epochs", str(size.relabel_epochs)]
        _job(relabel_demo, ["--out", "relabel", *flags, "--seed", self.seed, *self.relabel_workers])

    def truth(self) -> None:
        """A test set of slides that no step has seen, with every type known."""
        from cellmill_schemas.ontology import get_ontology
        from cellmill_training.datasets.readers.synthetic import render_images
        from cellmill_training.datasets.store import write_dataset

        shutil.rmtree("truth", ignore_errors=True)
        seeds = range(_FIRST_TRUTH_SEED, _FIRST_TRUTH_SEED + self.size.truth_images)
        images = list(render_images(seeds, side_px=_TRUTH_SIDE_PX, mpp=_TRUTH_MPP))
        write_dataset(
            "truth", images, ontology=get_ontology("refined7"), splits={one.split_group: "test" for one in images}
        )

    def pretrain(self) -> None:
        """A tiny vision transformer learns tissue without labels."""
        from cellmill_training.pretrain.job import main as pretrain_encoder

        size = self.size
        images = ["--datasets", "relabel/refined/dataset", "--synthetic-regions", str(size.synthetic_regions)]
        if self.data:
            images += ["--data", str(self.data)]
        flags = ["--max-steps", str(size.encoder_steps), "--batch-size", "16", "--tracking", ".", "--seed", self.seed]
        _job(pretrain_encoder, ["--out", "encoder", *images, *flags, *self.workers])

    def teacher(self) -> None:
        """A decoder over the frozen encoder."""
        self._train("teacher-demo", "teacher", ["--encoder-weights", "encoder"])

    def baseline(self) -> None:
        """The ResNet50 U-Net: same data, crops, loss and steps."""
        self._train("teacher-resnet50-demo", "baseline", [])

    def distil(self) -> None:
        """The student with and without the teacher."""
        from cellmill_training.distill.job import main as distill_student

        flags = ["--recipe", "lite-distilled-demo", "--teacher", "teacher/model", "--compare", "--tracking", "."]
        steps = ["--epochs", "1000", "--max-steps", str(self.size.student_steps), "--seed", self.seed]
        _job(distill_student, ["--data", "relabel/refined/dataset", "--out", "student", *flags, *steps, *self.workers])

    def evaluate(self) -> None:
        """All models on the truth."""
        from cellmill_training.evaluation.job import main as evaluate_model

        for name, model in _MODELS.items():
            out = f"evaluation/{_file(name)}"
            flags = ["--device", "cpu", "--replicates", "1000"]
            _job(evaluate_model, ["--model", model, "--dataset", "truth", "--out", out, *flags])

    def promote(self) -> None:
        """The student without a teacher is the first champion; the taught one follows if its gate lets it."""
        first = _promotion(_MODELS["student, alone"])
        second = _promotion(_MODELS["student, taught"])
        _note("promotions", {"student, alone": first, "student, taught": second})

    def refuse(self) -> None:
        """The student after a twentieth of its steps, held against the packaged `lite`, has to be refused."""
        from cellmill_training.distill.job import main as distill_student

        steps = str(max(2, self.size.student_steps // 20))
        flags = ["--recipe", "lite-distilled-demo", "--teacher", "teacher/model", "--tracking", "."]
        common = ["--data", "relabel/refined/dataset", "--out", "worse", "--seed", self.seed, *self.workers]
        _job(distill_student, [*common, *flags, "--epochs", "1000", "--max-steps", steps])
        outcomes = {
            "lite, as reference": _promotion("lite", to="reference"),
            "student, a twentieth of the steps, to take its place": _promotion(
                "worse/t14-alpha_soft/model", to="reference"
            ),
        }
        if list(outcomes.values()) != ["promoted", "refused"]:
            raise SystemExit(f"train-demo: the gate let through what it should not: {outcomes}.")
        _note("refusal", outcomes)

    def segment(self) -> None:
        """A slide by whatever is champion."""
        from cellmill.cohort.job import main as segment_cohort
        from cellmill.synthetic.job import main as make_synthetic_cohort

        side = str(self.size.slide_mm)
        _job(make_synthetic_cohort, ["--out", "cohort", "--num-slides", "1", "--width-mm", side, "--height-mm", side])
        model = f"models:/{MODEL_NAME}@champion"
        _job(segment_cohort, ["--slides", "cohort/slides", "--out", "cells", "--model", model])

    def _train(self, recipe: str, out: str, more: list[str]) -> None:
        from cellmill_training.teacher.job import main as train_teacher

        data = ["--data", "relabel/refined/dataset", "--out", out, "--recipe", recipe]
        steps = [
            "--epochs",
            "1000",
            "--max-steps",
            str(self.size.teacher_steps),
            "--tracking",
            ".",
            "--seed",
            self.seed,
        ]
        _job(train_teacher, [*data, *steps, *more, *self.workers])


def _job(main: Callable[[list[str]], int], arguments: list[str], *, allowed: tuple[int, ...] = (0,)) -> int:
    """Run a job as its command line would; any exit code but those allowed ends the demo."""
    code = main(arguments)
    if code not in allowed:
        raise SystemExit(f"train-demo: {main.__module__} {' '.join(arguments)} ended with code {code}.")
    return code


def _promotion(model: str, *, to: str = "champion") -> str:
    from cellmill_training.tracking.promotion_job import PROMOTED, REFUSED
    from cellmill_training.tracking.promotion_job import main as promote_model

    flags = ["--to", to, "--name", MODEL_NAME, "--dataset", "truth", "--device", "cpu"]
    code = _job(promote_model, ["--model", model, *flags], allowed=(PROMOTED, REFUSED))
    return "promoted" if code == PROMOTED else "refused"


def _once(name: str, step: Callable[[], None]) -> float:
    """Seconds a step took, now or when it was done."""
    done = Path("done") / f"{name}.json"
    if not done.exists():
        sys.stdout.write(f"\n== {name}\n")
        sys.stdout.flush()
        started = time.monotonic()
        step()
        _note(name, {"seconds": round(time.monotonic() - started, 1)})
    return float(json.loads(done.read_text(encoding="utf-8"))["seconds"])


def _note(name: str, document: dict[str, Any]) -> None:
    path = Path("done") / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document), encoding="utf-8")
    partial.replace(path)


def _file(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")


def results_table(out: Path, seconds: dict[str, float]) -> str:
    """The chain's figures as Markdown: relabelling against the truth, models, promotions, times."""
    return "\n\n".join([_relabel_table(out), _model_table(out), _promotion_lines(out), _time_line(seconds)])


def _relabel_table(out: Path) -> str:
    rows = ["| merged types found again | classifier | area and stain alone | cells |", "|---|---|---|---|"]
    for one in json.loads((out / "relabel" / "recovery.json").read_text(encoding="utf-8")):
        names = " or ".join(one["found"]["class_names"])
        found, plain = (one[key]["natural"]["value"] for key in ("found", "plain"))
        cells = sum(sum(row) for row in one["found"]["confusion"])
        rows.append(f"| {names} | {found:.3f} | {plain:.3f} | {cells} |")
    return "\n".join(rows)


def _model_table(out: Path) -> str:
    heads = ("model", "parameters", "PQ", "DQ", "mean PQ of types", "mean F1 of types", "mean R2 of types")
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, model in _MODELS.items():
        path = out / "evaluation" / _file(name) / "evaluation.json"
        figures = json.loads(path.read_text(encoding="utf-8"))["sets"]["all"]["strict"]
        cells = [_with_interval(figures["pooled"][key]) for key in ("pq", "dq")]
        cells += [_with_interval(figures["means_over_types"][key]) for key in ("pq", "f1", "r2")]
        rows.append(f"| {name} | {_num_parameters(out / model):,} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _with_interval(figure: dict[str, float | None]) -> str:
    value, low, high = (figure[key] for key in ("value", "low", "high"))
    return "not defined" if value is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


def _num_parameters(model: Path) -> int:
    from cellmill.models.loading import load_model
    from cellmill.models.networks import build_model, count_parameters

    return count_parameters(build_model(load_model(model).config))


def _promotion_lines(out: Path) -> str:
    notes = [json.loads((out / "done" / f"{name}.json").read_text()) for name in ("promotions", "refusal")]
    return "\n".join(f"- {model}: {outcome}" for note in notes for model, outcome in note.items())


def _time_line(seconds: dict[str, float]) -> str:
    parts = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    return f"Times: {parts}; {sum(seconds.values()) / 60:.0f} minutes in all."
