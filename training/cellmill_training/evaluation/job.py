"""`evaluate-model`: a model on labelled images, as figures with intervals, a table of images and a page.

Settings -> references (`references.py`) -> cells (`predictions.py`) -> counts and figures (`evaluating.py`,
`cellmill.metrics`) -> `evaluation.json`, `images.parquet`, `evaluation.html`, and a run in MLflow.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cellmill.arguments import parse_dataclass

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cellmill_training.evaluation.evaluating import Evaluation

__all__ = ["EvaluateModelSettings", "main"]

DONE, UNUSABLE = 0, 2
"""Exit codes: figures are written; nothing was measured, because model, data or settings cannot be used."""

_DESCRIPTION = """Measure a model on labelled images that it was not trained on. Writes evaluation.json, images.parquet
and evaluation.html, and a run in MLflow (MLFLOW_TRACKING_URI, else mlflow.db in the current folder)."""


@dataclass(frozen=True)
class EvaluateModelSettings:
    """Settings of one evaluation.

    Args:
        model: a model folder, a packaged name such as lite, or a models:/ URI.
        dataset: a store of labelled images, or the folder of the local sets that train_student takes as --data.
        out: folder for the results.
        split: which split to measure on. A model must be neither trained, chosen nor tuned on it.
        origins: labels of these origins only, by lineage, such as annotator or dataset:pannuke. Default: all.
        mapping: from the data set's classes to the model's where they differ; builtin, or a JSON file. Default: none.
        device: where the network runs; figures of model cards are taken on cpu. auto takes CUDA where torch sees it.
        num_threads: CPU threads of the network. Default 0: as many as there are cores.
        replicates: bootstrap replicates of the intervals.
        resample: draw images, or whole groups (patients, slides, parent fields), which is right where the images of one
            group are alike.
        seed: of the draws.
        pictures: how many images the page shows.
        experiment: name of the MLflow experiment.
    """

    model: str = ""
    dataset: str = ""
    out: str = ""
    split: str = "test"
    origins: tuple[str, ...] = ()
    mapping: str = ""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_threads: int = 0
    replicates: int = 1000
    resample: Literal["images", "groups"] = "images"
    seed: int = 0
    pictures: int = 6
    experiment: str = "evaluation"

    def __post_init__(self) -> None:
        for flag, value in (("--model", self.model), ("--dataset", self.dataset), ("--out", self.out)):
            if not value:
                raise ValueError(f"{flag} is missing; give all of --model, --dataset and --out.")
        if self.replicates < 100:
            raise ValueError(f"--replicates must be at least 100 for a 95 % interval, got {self.replicates}.")
        if self.pictures < 0 or self.num_threads < 0:
            raise ValueError(
                f"--pictures and --num-threads must not be negative, got {self.pictures} and {self.num_threads}."
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    settings = parse_dataclass(
        EvaluateModelSettings, prog="evaluate-model", description=_DESCRIPTION, arguments=arguments
    )
    try:
        _run(settings)
    except ValueError as error:
        sys.stderr.write(f"evaluate-model: {error}\n")
        return UNUSABLE
    return DONE


def _run(settings: EvaluateModelSettings) -> None:
    from cellmill.models.inference import choose_device
    from cellmill.models.loading import load_model
    from cellmill_training.evaluation.evaluating import evaluate_model
    from cellmill_training.evaluation.pictures import SideBySide
    from cellmill_training.evaluation.predictions import CellPredictor
    from cellmill_training.evaluation.references import open_references
    from cellmill_training.evaluation.results import Resampling, describe, write_results

    model = load_model(settings.model)
    ontology = model.config.ontology
    references = open_references(
        settings.dataset, ontology=ontology, split=settings.split, origins=settings.origins, mapping=settings.mapping
    )
    threads = settings.num_threads or os.cpu_count() or 1
    predictor = CellPredictor(model, device=choose_device(settings.device), num_threads=threads)
    look = SideBySide(ontology, num_pictures=settings.pictures)
    evaluation = evaluate_model(predictor, references, look=look, progress=_progress)
    document = describe(
        evaluation,
        model=model,
        references=references,
        resampling=Resampling(settings.replicates, settings.resample == "groups", settings.seed),
        origins=settings.origins,
        mapping=settings.mapping,
    )
    files = write_results(Path(settings.out), evaluation, document, look.pictures)
    _track(settings, document, files, look.pictures)
    _report(evaluation, document, Path(settings.out))


def _track(
    settings: EvaluateModelSettings,
    document: dict[str, Any],
    files: Sequence[Path],
    pictures: "dict[str, npt.NDArray[np.uint8]]",
) -> None:
    from cellmill_training.evaluation.results import flat_metrics
    from cellmill_training.tracking.runs import tracked_run

    data, model = document["dataset"], document["model"]
    with tracked_run(
        experiment=settings.experiment,
        name=f"{model['name']} on {data['name']} {data['split']}",
        config=settings,
        data_digests={data["name"]: data["digest"]},
        folder=Path.cwd(),
    ) as run:
        run.log_metrics(flat_metrics(document))
        run.set_tag("model_digest", model["digest"])
        run.set_tag("model_source", model["source"])
        for file in files:
            run.log_file(file)
        for number, image in enumerate(pictures.values()):
            run.log_image(image, f"overlays/{number:02d}.png")


def _progress(done: int, total: int) -> None:
    end = "\n" if done == total else ""
    if sys.stderr.isatty() or done == total:
        sys.stderr.write(f"\revaluate-model: {done} of {total} images{end}")


def _report(evaluation: "Evaluation", document: dict[str, Any], out: Path) -> None:
    for source in evaluation.sources:
        for reading, figures in document["sets"][source].items():
            values = " ".join(
                f"{name.upper()} {_shown(figures['pooled'][name])}" for name in ("pq", "dq", "sq", "aji", "r2")
            )
            f1 = _shown(figures["means_over_types"]["f1"])
            sys.stdout.write(f"{source} ({reading}): {values}, mean F1 of types {f1}\n")
    sys.stdout.write(f"Page: {out / 'evaluation.html'}\n")


def _shown(figure: dict[str, float | None]) -> str:
    return "-" if figure["value"] is None else f"{figure['value']:.3f}"
