"""What a prediction is held against: one record whichever way the labels are kept.

Consumes a store of labelled images (`datasets.store`) or a folder of the local sets (`train_student --data`); produces
`ReferenceImage`s of one split in the classes of the model, one at a time.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import numpy as np
import numpy.typing as npt

from cellmill_schemas.ontology import Ontology, OntologyMapping
from cellmill_schemas.ontology_mappings import get_mapping
from cellmill_training.datasets.labelled_image import LabelledImage
from cellmill_training.samples import BACKGROUND_BIT, Split, TissueSample, training_ontology
from cellmill_training.sources.dsb18 import read_dsb18
from cellmill_training.sources.monusac import read_monusac
from cellmill_training.sources.puma import read_puma

__all__ = ["ReferenceImage", "ReferenceSet", "open_references", "read_mapping", "reference_of_sample"]

_LOCAL_SETS: dict[str, Callable[[Path], list[TissueSample]]] = {
    "dsb18": read_dsb18,
    "monusac": read_monusac,
    "puma_tile": read_puma,
}
"""Local sets with outlines and a split; the others hold points, boxes or nothing to measure on."""


@dataclass(frozen=True)
class ReferenceImage:
    """One image and what is known about it, in the classes of the model."""

    image_id: str
    source: str
    group: str
    """Patient, slide or parent field: what is alike."""
    mpp: float
    image: npt.NDArray[np.uint8]  # (H, W, 3)
    instances: npt.NDArray[np.int32]  # (H, W), 0 background
    permitted: npt.NDArray[np.bool_]
    """(n + 1, C): the types that instance k may have; row 0 is not used."""
    unknown: npt.NDArray[np.bool_]
    """(H, W): it is not said whether there is a nucleus, or what is outlined is not a nucleus."""


@dataclass(frozen=True)
class ReferenceSet:
    """One split of one data set, named and with a digest, so that figures say what they hold for."""

    name: str
    split: str
    digest: str
    num_images: int
    images: Callable[[], Iterator[ReferenceImage]]


def open_references(
    place: str | Path,
    *,
    ontology: Ontology,
    split: str = "test",
    origins: tuple[str, ...] = (),
    mapping: str = "",
) -> ReferenceSet:
    """Open the data set at `place`.

    Args:
        place: a store of labelled images, or the folder of the local sets.
        ontology: the model's classes.
        split: train, validation or test.
        origins: labels of these origins only, such as `annotator` or `model:lite@3`; all when empty.
        mapping: `builtin` for cellmill's own table from the data set's classes to the model's, or a file that
            `read_mapping` reads; nothing where they are the same.

    Raises:
        ValueError: when there is no data set, no image in the split, or its classes are not the model's and no mapping
            was given.
    """
    if split not in get_args(Split):
        raise ValueError(f"--split must be one of {', '.join(get_args(Split))}, got {split!r}.")
    folder = Path(place)
    if any((folder / "nuclei" / name).is_dir() for name in _LOCAL_SETS):
        if origins:
            raise ValueError("--origins needs a store of labelled images; the folder of local sets keeps no lineage.")
        return _local_references(folder, split=cast(Split, split), ontology=ontology, mapping=mapping)
    return _stored_references(place, split=cast(Split, split), ontology=ontology, origins=origins, mapping=mapping)


def read_mapping(mapping: str, *, source: Ontology, target: Ontology) -> OntologyMapping | None:
    """The mapping asked for: None for none, cellmill's own for `builtin`, otherwise read from a file.

    The file is a JSON object from each class of the data set to a list of the model's classes.

    Several classes mean that the data set does not tell them apart, none that the model does not know the class.

    Raises:
        ValueError: naming the file and what is wrong.
    """
    if not mapping:
        return None
    if mapping == "builtin":
        try:
            return get_mapping(source, target)
        except KeyError as error:
            raise ValueError(f"--mapping builtin: {error.args[0]}") from error
    try:
        document = json.loads(Path(mapping).read_text(encoding="utf-8"))
        pairs = tuple((str(name), tuple(str(one) for one in targets)) for name, targets in document.items())
        return OntologyMapping(source, target, pairs)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"--mapping {mapping} must be a JSON object that gives each of {', '.join(source.names)} a list of classes "
            f"of {target.name} ({', '.join(target.names)}): {error}"
        ) from error


def reference_of_sample(
    sample: TissueSample, *, ontology: Ontology, mapping: OntologyMapping | None = None
) -> ReferenceImage:
    """A local sample: an instance's bit set is its set of types; a pixel that may be background or not is unknown."""
    own = training_ontology()
    table = _class_table(own, ontology, mapping)
    bits = (sample.classes[:, None] >> (1 + np.arange(len(own)))) & 1  # (n + 1, classes of the set)
    return ReferenceImage(
        image_id=sample.name,
        source=sample.source,
        group=sample.group,
        mpp=sample.mpp,
        image=sample.image,
        instances=sample.instances,
        permitted=_carried_over(bits.astype(np.bool_), table),
        unknown=((sample.allowed & BACKGROUND_BIT) > 0) & (sample.allowed > BACKGROUND_BIT),
    )


def _stored_references(
    place: str | Path, *, split: Split, ontology: Ontology, origins: tuple[str, ...], mapping: str
) -> ReferenceSet:
    from cellmill_training.datasets.lineage import parse_origins
    from cellmill_training.datasets.store import open_dataset

    dataset = open_dataset(place)
    wanted = parse_origins(origins) if origins else None
    wished = read_mapping(mapping, source=dataset.ontology, target=ontology)
    table = _class_table(dataset.ontology, ontology, wished)
    ids = dataset.image_ids(split)
    if not ids:
        raise ValueError(f"Data set {dataset.name!r} has no image in split {split!r}; give another --split.")
    return ReferenceSet(
        name=dataset.name,
        split=split,
        digest=dataset.digest,
        num_images=len(ids),
        images=lambda: (_of_labelled(one, dataset.ontology, table) for one in dataset.images(split, wanted)),
    )


def _of_labelled(image: LabelledImage, own: Ontology, table: npt.NDArray[np.bool_]) -> ReferenceImage:
    bits = np.zeros((image.num_cells + 1, len(own)), np.bool_)
    for number, label in enumerate(image.labels, start=1):
        for name in label.cell_types:
            bits[number, own.index(name)] = True
    return ReferenceImage(
        image_id=image.image_id,
        source=image.source,
        group=image.split_group,
        mpp=image.mpp,
        image=image.image,
        instances=image.instances,
        permitted=_carried_over(bits, table),
        unknown=image.unknown & (image.instances == 0),
    )


def _local_references(folder: Path, *, split: Split, ontology: Ontology, mapping: str) -> ReferenceSet:
    wished = read_mapping(mapping, source=training_ontology(), target=ontology)
    _class_table(training_ontology(), ontology, wished)
    samples = [
        sample
        for name, read in _LOCAL_SETS.items()
        if (folder / "nuclei" / name).is_dir()
        for sample in read(folder / "nuclei" / name)
        if sample.split == split
    ]
    if not samples:
        raise ValueError(f"The sets under {folder / 'nuclei'} have no image in split {split!r}; give another --split.")
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(f"{sample.source}/{sample.name}/{sample.image.shape}/{sample.mpp}".encode())
        for array in (sample.image, sample.instances, sample.allowed):
            digest.update(np.ascontiguousarray(array).tobytes())
    return ReferenceSet(
        name="local-sets",
        split=split,
        digest=digest.hexdigest(),
        num_images=len(samples),
        images=lambda: (reference_of_sample(one, ontology=ontology, mapping=wished) for one in samples),
    )


def _class_table(own: Ontology, target: Ontology, mapping: OntologyMapping | None) -> npt.NDArray[np.bool_]:
    """(classes of the set, classes of the model): which may be which."""
    if mapping is None:
        if own.names != target.names:
            raise ValueError(
                f"The data set's classes ({own.name}: {', '.join(own.names)}) are not the model's ({target.name}: "
                f"{', '.join(target.names)}). Say which is which: --mapping builtin where cellmill has a table for the "
                "two, or --mapping FILE, a JSON object that gives each of the data set's classes a list of the model's."
            )
        return np.eye(len(own), dtype=np.bool_)
    if mapping.source.names != own.names or mapping.target.names != target.names:
        raise ValueError(
            f"The mapping goes from {mapping.source.name} to {mapping.target.name}, the data set has {own.name} and "
            f"the model {target.name}."
        )
    table = np.zeros((len(own), len(target)), np.bool_)
    for row, name in enumerate(own.names):
        table[row, list(mapping.target_indices(name))] = True
    return table


def _carried_over(bits: npt.NDArray[np.bool_], table: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Permitted types (n + 1, C) in the model's classes; a cell that may be a class the model lacks is unknown."""
    permitted = (bits.astype(np.int64) @ table.astype(np.int64)) > 0
    lost = (bits & ~table.any(axis=1)).any(axis=1)
    permitted[lost] = False
    return permitted
