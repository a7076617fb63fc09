"""Cross-relabelling itself: which classifier settles which open labels, and the labels it gives.

A label is open when its source leaves several classes possible: MoNuSAC's "epithelial" is neoplastic or epithelial,
PanNuke's "inflammatory" is lymphocyte, macrophage or neutrophil. A `Refinement` says that a classifier of exactly those
classes, learned from a data set that tells them apart (`fine`), settles the open labels of another (`coarse`).

Consumes labelled images and classifiers; produces the same images with settled labels, whose origin names the
classifier and its probability, and one `NewLabel` each. Labels that were certain keep label and origin.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from cellmill_training.datasets.labelled_image import CellLabel, LabelledImage, LabelOrigin
from cellmill_training.relabel.classifier import LoadedClassifier, predict
from cellmill_training.relabel.crops import cell_boxes, cell_crops

__all__ = ["NewLabel", "Refinement", "infer_refinements", "parse_refinement", "relabelled_image"]


@dataclass(frozen=True)
class Refinement:
    """One data set's knowledge used on another's open labels."""

    fine: str
    """Data set that tells the classes apart."""
    classes: tuple[str, ...]
    """What the open label may be, in the ontology's order."""
    coarse: str
    """Data set that leaves them open."""

    def __str__(self) -> str:
        return f"{self.fine}:{','.join(self.classes)}>{self.coarse}"


@dataclass(frozen=True)
class NewLabel:
    """What a classifier says about one cell."""

    image_id: str
    instance: int
    classifier: str
    cell_type: str
    """The most probable class."""
    probability: float
    probabilities: tuple[float, ...]
    """Of each of the classifier's classes."""
    settled: bool
    """Whether the label was taken; below `min_probability` it stays open."""


def parse_refinement(text: str) -> Refinement:
    """Read `FINE:CLASS,CLASS>COARSE`.

    Raises:
        ValueError: when the text is of another form.
    """
    fine, colon, rest = text.partition(":")
    classes, arrow, coarse = rest.rpartition(">")
    names = tuple(name.strip() for name in classes.split(",") if name.strip())
    if not (colon and arrow and fine.strip() and coarse.strip()) or len(names) < 2:
        raise ValueError(
            f"A refinement reads FINE:CLASS,CLASS>COARSE (pannuke:neoplastic,epithelial>monusac), got {text!r}."
        )
    return Refinement(fine.strip(), names, coarse.strip())


def infer_refinements(counts: Mapping[str, Mapping[tuple[str, ...], int]]) -> tuple[Refinement, ...]:
    """For each open label of a data set, the data set that has most cells of the rarest of its classes.

    Args:
        counts: `cells.label_counts` of each data set by its name.
    """
    found: list[Refinement] = []
    for coarse, labels in counts.items():
        for classes in sorted(types for types in labels if len(types) > 1):
            rarest = {
                fine: min(known.get((name,), 0) for name in classes) for fine, known in counts.items() if fine != coarse
            }
            fine = max(rarest, key=lambda name: rarest[name], default="")
            if fine and rarest[fine] > 0:
                found.append(Refinement(fine, classes, coarse))
    return tuple(found)


def relabelled_image(
    image: LabelledImage,
    classifiers: Sequence[LoadedClassifier],
    *,
    min_probability: float = 0.0,
    device: torch.device | None = None,
) -> tuple[LabelledImage, list[NewLabel]]:
    """Settle the open labels of one image.

    Args:
        image: an image of the coarse data set.
        classifiers: each settles the labels that leave open exactly its classes.
        min_probability: a label whose best class is less probable stays open.
        device: where to predict.
    """
    labels, found = list(image.labels), list[NewLabel]()
    for classifier in classifiers:
        names = classifier.config.class_names
        open_places = [place for place, label in enumerate(image.labels) if set(label.cell_types) == set(names)]
        if not open_places:
            continue
        boxes = cell_boxes(image.instances)[open_places]
        crops = cell_crops(image.image, boxes, mpp=image.mpp, config=classifier.config.crop)
        for place, row in zip(open_places, predict(classifier.network, crops, device=device), strict=True):
            best = int(row.argmax())
            new = NewLabel(
                image_id=image.image_id,
                instance=place + 1,
                classifier=classifier.name,
                cell_type=names[best],
                probability=min(1.0, float(row[best])),
                probabilities=tuple(float(value) for value in row),
                settled=float(row[best]) >= min_probability,
            )
            found.append(new)
            if new.settled:
                origin = LabelOrigin("relabel", classifier.name, new.probability)
                labels[place] = CellLabel((new.cell_type,), origin)
    return replace(image, labels=tuple(labels)), found
