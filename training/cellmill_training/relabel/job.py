"""`relabel-dataset`: settings from the command line, one run, its figures in the report and in MLflow."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cellmill.arguments import parse_dataclass
from cellmill_training.ray_trainer import Device, WorkerPlan

if TYPE_CHECKING:
    from cellmill_training.relabel.run import RelabelConfig, RelabelResult
    from cellmill_training.tracking.runs import TrackedRun

__all__ = ["RelabelSettings", "config_of", "main", "run_relabelling"]

UNUSABLE = 2

_DESCRIPTION = """Settle labels that one data set leaves open by a classifier trained on another that tells them apart:
MoNuSAC's epithelial cells into neoplastic and epithelial, PanNuke's inflammatory cells into lymphocyte, macrophage and
neutrophil. Writes one refined data set, the lineage of every label and a report."""


@dataclass(frozen=True)
class RelabelSettings:
    """Settings of one cross-relabelling.

    Args:
        datasets: two or more data sets of the store, as import-dataset writes them.
        out: folder for classifiers, the refined data set (OUT/dataset) and the report. A run that was cut off goes on.
        refinements: FINE:CLASS,CLASS>COARSE, such as pannuke:neoplastic,epithelial>monusac: which data set's knowledge
            settles which open labels of which other. Default: for each open label the data set that knows most cells.
        ontology: of the refined data set; the data sets' own must map to it.
        recipe: refined7 is the paper's (ResNet50 from ImageNet's weights); small is timm's smallest ResNet from
            random weights, for two CPU cores. The settings below change single values of it.
        encoder: name of a timm model. Default: the recipe's.
        weights: imagenet (from timm's hub), random, or a file of the encoder's weights. Default: the recipe's.
        epochs: passes over the balanced training cells. Default: the recipe's.
        batch_size: crops a step and worker. Default: the recipe's.
        learning_rate: peak of the cosine. Default: the recipe's.
        min_probability: labels whose best class is less probable stay open; 0 settles all, as in the paper.
        splits: redraw gives 70/20/10 by group with every class in every split; keep takes the data sets' own.
        seed: of splits, balancing, weights and augmentation.
        num_workers: Ray Train workers; 0 trains in this process, which starts at once.
        cpus_per_worker: CPU cores (and threads) a worker may use.
        device: where to train and predict; auto takes CUDA where torch sees one.
        max_failures: how often a dead worker is replaced before the run gives up.
    """

    datasets: tuple[str, ...] = ()
    out: str = ""
    refinements: tuple[str, ...] = ()
    ontology: str = "refined7"
    recipe: Literal["refined7", "small"] = "refined7"
    encoder: str = ""
    weights: str = ""
    epochs: int = 0
    batch_size: int = 0
    learning_rate: float = 0.0
    min_probability: float = 0.0
    splits: Literal["redraw", "keep"] = "redraw"
    seed: int = 0
    num_workers: int = 1
    cpus_per_worker: int = 2
    device: Device = "auto"
    max_failures: int = 3

    def __post_init__(self) -> None:
        if len(self.datasets) < 2:
            raise ValueError(f"--datasets must name two data sets or more, got {len(self.datasets)}.")
        if not self.out:
            raise ValueError("--out must be a folder for the refined data set, got nothing.")
        if not 0.0 <= self.min_probability < 1.0:
            raise ValueError(f"--min-probability must be at least 0 and below 1, got {self.min_probability}.")
        if min(self.epochs, self.batch_size, self.learning_rate) < 0:
            raise ValueError("--epochs, --batch-size and --learning-rate must not be negative.")

    @property
    def plan(self) -> WorkerPlan:
        """Workers and what each gets."""
        return WorkerPlan(self.num_workers, self.cpus_per_worker, self.device, self.max_failures)


def config_of(settings: RelabelSettings) -> "RelabelConfig":
    """The recipe with the command line's changes."""
    from cellmill_training.relabel import recipe
    from cellmill_training.relabel.relabelling import parse_refinement

    base = recipe.SMALL if settings.recipe == "small" else recipe.REFINED7
    fit = replace(
        base.learn.fit,
        epochs=settings.epochs or base.learn.fit.epochs,
        batch_size=settings.batch_size or base.learn.fit.batch_size,
        learning_rate=settings.learning_rate or base.learn.fit.learning_rate,
        seed=settings.seed,
    )
    learn = replace(
        base.learn,
        encoder=settings.encoder or base.learn.encoder,
        weights=settings.weights or base.learn.weights,
        fit=fit,
    )
    return replace(
        base,
        refinements=tuple(parse_refinement(text) for text in settings.refinements),
        ontology=settings.ontology,
        splits=settings.splits,
        learn=learn,
        min_probability=settings.min_probability,
        seed=settings.seed,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    settings = parse_dataclass(RelabelSettings, prog="relabel-dataset", description=_DESCRIPTION, arguments=arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from cellmill_training.loop import LossIsNotFiniteError

    try:
        result = run_relabelling(settings)
    except (ValueError, LossIsNotFiniteError) as error:
        sys.stderr.write(f"relabel-dataset: {error}\n")
        return UNUSABLE
    for one in result.learned:
        sys.stdout.write(
            f"{one.classifier.name}: accuracy natural {one.test.natural.value:.3f}, balanced "
            f"{one.test.balanced.value:.3f}; area and stain alone {one.plain.natural.value:.3f}, "
            f"{one.plain.balanced.value:.3f}\n"
        )
    sys.stdout.write(
        f"{len(result.new_labels)} cells relabelled. Data set: {Path(settings.out) / 'dataset'}. "
        f"Report: {Path(settings.out) / 'report.html'}\n"
    )
    return 0


def run_relabelling(settings: RelabelSettings) -> "RelabelResult":
    """Learn, relabel, write, report.

    Raises:
        ValueError: when data sets or settings cannot be used.
    """
    from cellmill_schemas.ontology import get_ontology
    from cellmill_training.datasets.store import open_dataset
    from cellmill_training.relabel.lineage import write_lineage
    from cellmill_training.relabel.report import write_report
    from cellmill_training.relabel.run import relabel_datasets
    from cellmill_training.tracking.runs import tracked_run

    out, config = Path(settings.out).resolve(), config_of(settings)
    datasets = [open_dataset(folder) for folder in settings.datasets]
    digests = {dataset.name: dataset.digest for dataset in datasets}
    with tracked_run(experiment="relabel", name=out.name, config=config, data_digests=digests, folder=out) as run:
        result = relabel_datasets(datasets, config, plan=settings.plan, out=out)
        write_lineage(result, out)
        page = write_report(result, get_ontology(config.ontology), out)
        _track(run, result, page)
    return result


def _track(run: "TrackedRun", result: "RelabelResult", page: Path) -> None:
    for one in result.learned:
        for epoch, entry in enumerate(one.history, start=1):
            run.log_metrics({f"{one.fine}/{name}": value for name, value in entry.items()}, step=epoch)
        for name, found in (("test", one.test), ("area_and_stain_alone", one.plain)):
            figures = {"natural_accuracy": found.natural.value, "balanced_accuracy": found.balanced.value}
            figures |= dict(zip(found.class_names, (estimate.value for estimate in found.by_class), strict=True))
            run.log_metrics({f"{one.fine}/{name}/{key}": value for key, value in figures.items()})
        run.set_tag(f"classifier_digest.{one.fine}", one.classifier.digest)
    run.set_tag("refined_digest", result.refined.digest)
    for path in (page, page.with_suffix(".json"), page.parent / "new_labels.parquet", page.parent / "images.parquet"):
        run.log_file(path)
