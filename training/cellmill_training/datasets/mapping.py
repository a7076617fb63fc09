"""Labels carried from one ontology to another, and several data sets into one.

A class the target does not tell apart becomes several possible classes, one it does not have becomes none: the nucleus
stays, its type is open. Origins stay as they are.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cellmill_schemas.ontology import Ontology, OntologyMapping
from cellmill_schemas.ontology_mappings import get_mapping
from cellmill_training.datasets.labelled_image import LabelledImage
from cellmill_training.datasets.splitting import Split
from cellmill_training.datasets.store import LabelledDataset, write_dataset

__all__ = ["concatenate", "mapped", "mapped_images"]


def mapped(image: LabelledImage, mapping: OntologyMapping) -> LabelledImage:
    """The image with labels in the mapping's target ontology.

    Raises:
        ValueError: when a label's class is not in the mapping's source, naming image and instance.
    """
    if mapping.source == mapping.target:
        return image
    labels = list(image.labels)
    for place, label in enumerate(image.labels):
        try:
            sources = [mapping.source.names[mapping.source.index(name)] for name in label.cell_types]
        except KeyError as error:
            raise ValueError(f"Image {image.image_id!r}, instance {place + 1}: {error.args[0]}") from error
        found = [mapping.target_indices(name) for name in sources]
        # One of several is not in the target: then it may be anything, not just the others.
        indices = sorted({index for one in found for index in one}) if all(found) else []
        labels[place] = replace(label, cell_types=tuple(mapping.target.names[index] for index in indices))
    return replace(image, labels=tuple(labels))


def mapped_images(
    dataset: LabelledDataset, ontology: Ontology, *, split: Split | None = None
) -> Iterator[LabelledImage]:
    """The data set's images with labels in `ontology`, by the built-in mapping.

    Raises:
        KeyError: when there is no mapping between the two ontologies.
    """
    mapping = get_mapping(dataset.ontology, ontology)
    return (mapped(image, mapping) for image in dataset.images(split))


def concatenate(
    datasets: Sequence[LabelledDataset],
    folder: str | Path,
    *,
    ontology: Ontology,
    mappings: Mapping[str, OntologyMapping] | None = None,
    name: str = "",
) -> LabelledDataset:
    """Write several data sets as one; every image keeps its split and its labels' origins.

    Args:
        datasets: with ids that differ.
        folder: of the new data set.
        ontology: of the new data set.
        mappings: name of a data set -> its mapping to `ontology`, where there is no built-in one.
        name: of the new data set; default: the folder's name.

    Raises:
        ValueError: when two data sets share an image, or a group on different sides of a split.
        KeyError: when there is no mapping from one of the ontologies.
    """
    chosen = [(mappings or {}).get(d.name) or get_mapping(d.ontology, ontology) for d in datasets]
    splits: dict[str, Split] = {}
    for dataset in datasets:
        for group, split in dataset.splits().items():
            if splits.setdefault(group, split) != split:
                raise ValueError(
                    f"Group {group!r} is in split {split!r} of {dataset.name!r}, but in {splits[group]!r} of another "
                    "data set. Import one of them again with the other's splits."
                )
    parts = zip(datasets, chosen, strict=True)
    images = (mapped(image, mapping) for dataset, mapping in parts for image in dataset.images())
    return write_dataset(folder, images, ontology=ontology, splits=splits, name=name)
