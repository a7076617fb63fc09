"""`train-outliner`, `outline-points` and `build-consensus`: from points to a data set that any training job takes.

    train-outliner   data set with outlines -> outliner
    outline-points   images, one annotator's points -> data set, each label by that annotator
    build-consensus  images, several annotators' points -> data set of what they agree on, and how far they do

Images are PNG, TIFF or JPEG files; `points` says how annotations are laid out.
"""

import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cellmill.arguments import parse_dataclass
from cellmill_schemas.ontology import Ontology, get_ontology, load_ontology

if TYPE_CHECKING:
    from cellmill_training.labelling.outlining import Outliner
    from cellmill_training.labelling.tiles import AnnotatedTiles

__all__ = [
    "AnnotatedSettings",
    "TrainOutlinerSettings",
    "main_build_consensus",
    "main_outline_points",
    "main_train_outliner",
]

UNUSABLE = 2
"""Exit code: nothing was written, because settings or data cannot be used."""


@dataclass(frozen=True)
class TrainOutlinerSettings:
    """Settings of one training run; the defaults are the paper's.

    Args:
        data: data set with outlines that can be trusted (a folder made by import-dataset).
        out: folder for the outliner; a run that was cut off is continued from here.
        epochs: passes over the training nuclei.
        batch_size: patches a step.
        learning_rate: peak of the cosine.
        jitter_um: standard deviation of the noise on points, as an annotator's hand is off the centre.
        most_nuclei: nuclei to train on at the most.
        mpp: scale of the patches, um/px.
        patch_px: side of a patch, a multiple of 8; at 0.5 um/px 64 px show what 128 px show at 0.25, at a quarter of
            the cost.
        seed: of weights, points and order.
    """

    data: str = ""
    out: str = ""
    epochs: int = 60
    batch_size: int = 64
    learning_rate: float = 1e-3
    jitter_um: float = 0.75
    most_nuclei: int = 50_000
    mpp: float = 0.25
    patch_px: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.data or not self.out:
            raise ValueError("--data must be a data set and --out a folder for the outliner.")
        if self.epochs < 1 or self.batch_size < 1 or self.most_nuclei < 1 or not 0.05 <= self.mpp <= 5:
            raise ValueError(
                "--epochs, --batch-size and --most-nuclei must be positive and --mpp 0.05 to 5 um/px, got "
                f"{self.epochs}, {self.batch_size}, {self.most_nuclei} and {self.mpp}."
            )
        if self.patch_px < 8 or self.patch_px % 8:
            raise ValueError(f"--patch-px must be a positive multiple of 8, got {self.patch_px}.")


@dataclass(frozen=True)
class AnnotatedSettings:
    """Images, what annotators said about them, and where the data set goes.

    Args:
        images: folder of images.
        points: folder with one folder an annotator: <annotator>/<image>.csv (x, y, class) or .geojson.
        outliner: folder that train-outliner wrote.
        out: folder or URL of the new data set.
        mpp: um/px of the images.
        ontology: name, or JSON file, of the annotators' classes.
        tissue: tissue of the images.
    """

    images: str = ""
    points: str = ""
    outliner: str = ""
    out: str = ""
    mpp: float = 0.25
    ontology: str = "refined7"
    tissue: str = ""

    def __post_init__(self) -> None:
        for name in ("images", "points", "outliner"):
            if not Path(getattr(self, name) or "/nowhere").is_dir():
                raise ValueError(f"--{name} must be a folder, got {getattr(self, name)!r}.")
        if not self.out:
            raise ValueError("--out must be a folder or URL for the new data set, got nothing.")
        if not 0.05 <= self.mpp <= 5:
            raise ValueError(f"--mpp must be 0.05 to 5 um/px, got {self.mpp}.")


def main_train_outliner(arguments: Sequence[str] | None = None) -> int:
    """Train an outliner; 0 when it is whole."""
    settings = parse_dataclass(
        TrainOutlinerSettings, prog="train-outliner", description="Learn outlines from points.", arguments=arguments
    )
    return _reporting("train_outliner", lambda: _train(settings))


def main_outline_points(arguments: Sequence[str] | None = None) -> int:
    """Outline every annotator's points; 0 when the data set is whole."""
    settings = parse_dataclass(
        AnnotatedSettings, prog="outline-points", description="Turn points into outlines.", arguments=arguments
    )
    return _reporting("outline_points", lambda: _outline(settings))


def main_build_consensus(arguments: Sequence[str] | None = None) -> int:
    """Build the consensus of several annotators; 0 when the data set is whole."""
    settings = parse_dataclass(
        AnnotatedSettings,
        prog="build-consensus",
        description="One answer from several annotators.",
        arguments=arguments,
    )
    return _reporting("build_consensus", lambda: _agree(settings))


def _reporting(name: str, work: Callable[[], None]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        work()
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{name}: {error}\n")
        return UNUSABLE
    return 0


def _train(settings: TrainOutlinerSettings) -> None:
    from cellmill_training.datasets.store import open_dataset
    from cellmill_training.labelling.outline_network import OutlineConfig
    from cellmill_training.labelling.outline_run import train_outliner
    from cellmill_training.labelling.outline_training import OutlineFit

    state = train_outliner(
        open_dataset(settings.data),
        Path(settings.out),
        config=OutlineConfig(mpp=settings.mpp, patch_px=settings.patch_px),
        fit=OutlineFit(settings.epochs, settings.batch_size, settings.learning_rate, settings.seed),
        jitter_um=settings.jitter_um,
        most_nuclei=settings.most_nuclei,
    )
    print(f"Outliner: {settings.out}  validation Dice: {state.best_dice:.3f}")  # noqa: T201


def _outline(settings: AnnotatedSettings) -> None:
    from cellmill_training.datasets.store import write_dataset

    tiles, outliner, ontology = _prepared(settings)
    dataset = write_dataset(settings.out, tiles.outlined(outliner), ontology=ontology)
    print(f"Data set: {settings.out}  images: {len(dataset)}  nuclei: {dataset.labels().num_rows}")  # noqa: T201


def _agree(settings: AnnotatedSettings) -> None:
    from cellmill_training.datasets.store import write_dataset
    from cellmill_training.labelling.tiles import AgreementTotals

    tiles, outliner, ontology = _prepared(settings)
    totals = AgreementTotals(ontology)
    dataset = write_dataset(settings.out, tiles.agreed(outliner, totals), ontology=ontology)
    dataset.store.put("agreement.json", json.dumps(totals.to_json(), indent=1).encode())
    print(f"Data set: {settings.out}  images: {len(dataset)}  nuclei: {dataset.labels().num_rows}")  # noqa: T201
    print(totals.as_text())  # noqa: T201


def _prepared(settings: AnnotatedSettings) -> "tuple[AnnotatedTiles, Outliner, Ontology]":
    from cellmill_training.labelling.outline_network import load_outliner
    from cellmill_training.labelling.outlining import make_outliner
    from cellmill_training.labelling.points import read_annotators
    from cellmill_training.labelling.tiles import AnnotatedTiles

    is_file = settings.ontology.endswith(".json")
    ontology = load_ontology(Path(settings.ontology)) if is_file else get_ontology(settings.ontology)
    tiles = AnnotatedTiles(
        Path(settings.images),
        read_annotators(Path(settings.points), ontology),
        ontology=ontology,
        mpp=settings.mpp,
        tissue=settings.tissue,
    )
    return tiles, make_outliner(*load_outliner(Path(settings.outliner))), ontology
