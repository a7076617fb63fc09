"""Cross-relabelling where the truth is known: two synthetic data sets, and how much of what was merged is found again.

    python -m cellmill_training.relabel.demo --out demo/relabel

Writes the two data sets of `synthetic_pair.py`, runs `relabel-dataset` on them, and measures the new labels against
the truth, beside logistic regression on area and hematoxylin density that learned from the same cells.
"""

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cellmill.arguments import parse_dataclass
from cellmill_training.relabel.baseline import PlainBaseline
from cellmill_training.relabel.cutting import plain_features, size_and_stain
from cellmill_training.relabel.job import RelabelSettings, run_relabelling
from cellmill_training.relabel.relabelling import NewLabel
from cellmill_training.relabel.run import Learned, RelabelResult
from cellmill_training.relabel.scores import Accuracies, accuracies
from cellmill_training.relabel.synthetic_pair import SyntheticPair, write_synthetic_pair

__all__ = ["DemoSettings", "Recovery", "main", "recoveries"]


@dataclass(frozen=True)
class DemoSettings:
    """Settings of the demonstration.

    Args:
        out: folder for data sets, classifiers and figures.
        num_images: of each data set, 200 um wide, one slide each.
        epochs: passes over the balanced training cells.
        encoder: name of a timm model, trained from random weights.
        batch_size: crops a step.
        seed: of slides, splits and weights.
        num_workers: Ray Train workers; 0 trains in this process.
        cpus_per_worker: CPU cores to train on.
    """

    out: str = "demo/relabel"
    num_images: int = 150
    epochs: int = 12
    encoder: str = "test_resnet"
    batch_size: int = 32
    seed: int = 0
    num_workers: int = 1
    cpus_per_worker: int = 2


@dataclass(frozen=True)
class Recovery:
    """How many merged cells of one data set got their true type back."""

    fine: str
    """Data set the classifier learned from."""
    found: Accuracies
    """Of the new labels; a group is an image, which is a slide."""
    plain: Accuracies
    """Of logistic regression on area and hematoxylin density, for the same cells."""


def recoveries(result: RelabelResult, pair: SyntheticPair) -> tuple[Recovery, ...]:
    """New labels against the truth, one entry a classifier."""
    return tuple(
        _recovery(one, [label for label in result.new_labels if label.classifier == one.classifier.name], pair)
        for one in result.learned
    )


def _recovery(one: Learned, labels: Sequence[NewLabel], pair: SyntheticPair) -> Recovery:
    names = one.index.class_names
    true = np.array([names.index(pair.truth[label.image_id][label.instance - 1]) for label in labels])
    found = np.array([names.index(label.cell_type) for label in labels])
    images = np.array([label.image_id for label in labels])
    fine = next(dataset for dataset in pair.datasets if dataset.name == one.fine)
    plain = PlainBaseline(
        plain_features(fine, one.index, one.rows["train"]), one.index.classes[one.rows["train"]]
    ).predict(_features(labels, pair))
    return Recovery(
        fine=one.fine,
        found=accuracies(true, found, images, class_names=names),
        plain=accuracies(true, plain, images, class_names=names),
    )


def _features(labels: Sequence[NewLabel], pair: SyntheticPair) -> npt.NDArray[np.float64]:
    home = {image_id: dataset for dataset in pair.datasets for image_id in dataset.image_ids()}
    wanted = {label.image_id for label in labels}
    tables = {image_id: size_and_stain(home[image_id].read(image_id)) for image_id in sorted(wanted)}
    return np.array([tables[label.image_id][label.instance - 1] for label in labels])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; returns 0."""
    settings = parse_dataclass(
        DemoSettings,
        prog="cellmill_training.relabel.demo",
        description="Cross-relabel two synthetic data sets and measure the new labels against the truth.",
        arguments=arguments,
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out = Path(settings.out)
    pair = write_synthetic_pair(out, num_images=settings.num_images, seed=settings.seed)
    result = run_relabelling(
        RelabelSettings(
            datasets=tuple(dataset.store.url for dataset in pair.datasets),
            out=str(out / "refined"),
            recipe="small",
            encoder=settings.encoder,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            seed=settings.seed,
            num_workers=settings.num_workers,
            cpus_per_worker=settings.cpus_per_worker,
        )
    )
    found = recoveries(result, pair)
    (out / "recovery.json").write_text(json.dumps([_plain(one) for one in found], indent=1) + "\n", encoding="utf-8")
    for one in found:
        for name, figures in (("new labels", one.found), ("area and stain alone", one.plain)):
            sys.stdout.write(_line(f"{one.fine}, {name}", figures))
    return 0


def _plain(one: Recovery) -> dict[str, object]:
    def figures(found: Accuracies) -> dict[str, object]:
        return {**asdict(found), "confusion": found.confusion.tolist()}

    return {"fine": one.fine, "found": figures(one.found), "plain": figures(one.plain)}


def _line(title: str, found: Accuracies) -> str:
    shares = ", ".join(f"{n} {e.value:.3f}" for n, e in zip(found.class_names, found.by_class, strict=True))
    natural, balanced = found.natural.value, found.balanced.value
    size = f"{found.confusion.sum()} cells of {found.num_groups} images"
    return f"{title}: natural {natural:.3f}, balanced {balanced:.3f}; {shares}; {size}\n"


if __name__ == "__main__":
    raise SystemExit(main())
