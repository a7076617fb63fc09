"""Annotated tiles: images with what annotators said about them, as labelled images.

`outlined` gives one image a tile and annotator, `agreed` one a tile that two or more annotators share. The split group
is the tile, so that copies of one image by several annotators are never divided.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill_schemas.ontology import Ontology
from cellmill_training.datasets.labelled_image import CellLabel, LabelledImage, LabelOrigin, densely_numbered
from cellmill_training.datasets.readers.files import read_rgb
from cellmill_training.labelling.agreement import PairAgreement, all_pairs, fleiss_kappa, ratings_of_all
from cellmill_training.labelling.consensus import Annotation, consensus_of
from cellmill_training.labelling.outlining import Outliner
from cellmill_training.labelling.points import PointAnnotations

__all__ = ["AgreementTotals", "AnnotatedTiles"]

_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")


@dataclass
class AgreementTotals:
    """How far annotators agree, over all tiles."""

    ontology: Ontology
    pairs: dict[tuple[str, str], PairAgreement] = field(default_factory=dict[tuple[str, str], PairAgreement])
    ratings: dict[int, list[npt.NDArray[np.int64]]] = field(default_factory=dict[int, list[npt.NDArray[np.int64]]])
    """By number of annotators: counts of types of nuclei that all of a tile's annotators have."""
    num_tiles: int = 0
    num_nuclei: int = 0

    def add(self, annotations: list[Annotation]) -> None:
        """Count one tile."""
        for pair, found in all_pairs(annotations, self.ontology).items():
            self.pairs[pair] = self.pairs[pair] + found if pair in self.pairs else found
        nuclei = consensus_of(annotations, self.ontology)
        self.ratings.setdefault(len(annotations), []).append(ratings_of_all(annotations, nuclei, self.ontology))
        self.num_tiles += 1
        self.num_nuclei += len(nuclei)

    def to_json(self) -> dict[str, Any]:
        """Figures as plain JSON types; a kappa that is not defined is null."""
        return {
            "tiles": self.num_tiles,
            "consensus_nuclei": self.num_nuclei,
            "pairs": [
                {
                    "annotators": list(pair),
                    "nuclei": [found.num_first, found.num_second],
                    "matched": found.num_matched,
                    "detection_f1": _or_none(found.detection_f1),
                    "cohen_kappa": _or_none(found.kappa),
                }
                for pair, found in sorted(self.pairs.items())
            ],
            "fleiss_kappa": {
                f"{number} annotators": _or_none(fleiss_kappa(np.concatenate(rows)))
                for number, rows in sorted(self.ratings.items())
            },
        }

    def as_text(self) -> str:
        """The figures, a line a pair."""
        document = self.to_json()
        lines = [
            f"{' and '.join(pair['annotators'])}: detection F1 {_text(pair['detection_f1'])}, "
            f"Cohen's kappa {_text(pair['cohen_kappa'])} over {pair['matched']} nuclei"
            for pair in document["pairs"]
        ]
        lines += [f"Fleiss' kappa, {number}: {_text(value)}" for number, value in document["fleiss_kappa"].items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class AnnotatedTiles:
    """A folder of images and the points of each annotator."""

    folder: Path
    annotators: Mapping[str, Mapping[str, PointAnnotations]]
    """annotator -> image -> points."""
    ontology: Ontology
    mpp: float
    tissue: str = ""

    def outlined(self, outliner: Outliner) -> Iterator[LabelledImage]:
        """One image a tile and annotator, every point with its outline.

        Raises:
            ValueError: when an image is missing or a point lies outside it, naming the file.
        """
        for annotator, images in sorted(self.annotators.items()):
            for name, points in sorted(images.items()):
                pixels = self._pixels(name)
                annotation = _outlined(points, pixels, self.mpp, outliner)
                origin = LabelOrigin("annotator", annotator)
                labels = [((kind,) if kind else ()) for kind in annotation.cell_types]
                yield self._image(
                    f"{name}~{annotator}", pixels, annotation.instances, tile=name, types=labels, origin=origin
                )

    def agreed(self, outliner: Outliner, totals: AgreementTotals) -> Iterator[LabelledImage]:
        """One image a tile with at least two annotators, outlines drawn again from the centres they agree on.

        Raises:
            ValueError: when an image is missing, a point lies outside it, or no tile has two annotators.
        """
        shared = [name for name in self._names() if len(self._of(name)) > 1]
        if not shared:
            raise ValueError("No image has points of two annotators; a consensus needs at least two.")
        for name in shared:
            pixels = self._pixels(name)
            annotations = [_outlined(points, pixels, self.mpp, outliner) for points in self._of(name)]
            totals.add(annotations)
            nuclei = consensus_of(annotations, self.ontology)
            centres = np.array([nucleus.point_px for nucleus in nuclei], np.float64).reshape(-1, 2)
            instances = outliner(pixels, self.mpp, centres)
            who = " and ".join(sorted(one.annotator for one in annotations))
            labels = [nucleus.cell_types for nucleus in nuclei]
            origin = LabelOrigin("consensus", who)
            yield self._image(name, pixels, instances, tile=name, types=labels, origin=origin)

    def _names(self) -> list[str]:
        return sorted({name for images in self.annotators.values() for name in images})

    def _of(self, name: str) -> list[PointAnnotations]:
        return [images[name] for _, images in sorted(self.annotators.items()) if name in images]

    def _pixels(self, name: str) -> npt.NDArray[np.uint8]:
        for suffix in _SUFFIXES:
            if (path := self.folder / f"{name}{suffix}").is_file():
                return read_rgb(path)
        raise ValueError(f"There are points for {name}, but no {name}{{{','.join(_SUFFIXES)}}} in {self.folder}.")

    def _image(
        self,
        image_id: str,
        pixels: npt.NDArray[np.uint8],
        instances: npt.NDArray[np.int32],
        *,
        tile: str,
        types: list[tuple[str, ...]],
        origin: LabelOrigin,
    ) -> LabelledImage:
        dense, numbers = densely_numbered(instances)
        labelled = partial(CellLabel, origin=origin)
        return LabelledImage(
            image_id=image_id,
            source=self.folder.name,
            tissue=self.tissue,
            split_group=tile,
            fold="",
            mpp=self.mpp,
            image=pixels,
            instances=dense,
            labels=tuple(labelled(types[number - 1]) for number in numbers),
            unknown=np.zeros(dense.shape, np.bool_),
        )


def _outlined(points: PointAnnotations, pixels: npt.NDArray[np.uint8], mpp: float, outliner: Outliner) -> Annotation:
    try:
        instances = outliner(pixels, mpp, points.points_px)
    except ValueError as error:
        raise ValueError(f"{points.annotator}, {points.image}: {error}") from None
    return Annotation(points.annotator, points.points_px, points.cell_types, instances)


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 4)


def _text(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"
