"""From the store to training: labelled images as `TissueSample`s, the sets of possible classes as bits.

Outside instances a pixel is background, or may be anything where the source does not say. Inside, it may be any class
its label leaves open; a nucleus of unknown type is some class and not background.
"""

from collections.abc import Collection, Iterator

import numpy as np

from cellmill_schemas.ontology import Ontology
from cellmill_schemas.ontology_mappings import get_mapping
from cellmill_training.datasets.labelled_image import LabelledImage
from cellmill_training.datasets.lineage import with_origins
from cellmill_training.datasets.mapping import mapped
from cellmill_training.datasets.splitting import Split
from cellmill_training.datasets.store import LabelledDataset
from cellmill_training.samples import BACKGROUND_BIT, STORE_MPP, Labels, TissueSample, make_sample, training_ontology

__all__ = ["labels_of", "sample_of", "samples_of"]


def samples_of(
    dataset: LabelledDataset,
    split: Split | None = None,
    *,
    ontology: Ontology | None = None,
    origins: Collection[str] | None = None,
    store_mpp: float = STORE_MPP,
) -> Iterator[TissueSample]:
    """Samples of a split, one at a time, ready for `mixture.CropSource`, which draws by their `source`.

    Args:
        dataset: a store.
        split: train, validation or test; default: all.
        ontology: what the network is trained for; default: `training_ontology()`. Labels are mapped to it.
        origins: labels to train on, see `lineage.with_origins`; default: all.
        store_mpp: samples finer than this are brought to it.

    Raises:
        KeyError: when the data set's ontology has no mapping to `ontology`.
    """
    target = ontology or training_ontology()
    mapping = get_mapping(dataset.ontology, target)
    for image_id in dataset.image_ids(split):
        image = mapped(dataset.read(image_id), mapping)
        wanted = image if origins is None else with_origins(image, origins)
        yield sample_of(wanted, split=dataset.split_of(image_id), ontology=target, store_mpp=store_mpp)


def sample_of(image: LabelledImage, *, split: Split, ontology: Ontology, store_mpp: float = STORE_MPP) -> TissueSample:
    """One image as a sample."""
    return make_sample(
        image.image,
        labels_of(image, ontology),
        mpp=image.mpp,
        name=image.image_id,
        source=image.source,
        group=image.split_group,
        split=split,
        store_mpp=store_mpp,
    )


def labels_of(image: LabelledImage, ontology: Ontology) -> Labels:
    """What the image says about each pixel, at its own resolution; bit 1 + c is class c of `ontology`.

    Raises:
        KeyError: when a label's class is not in the ontology.
    """
    any_class = ((1 << len(ontology)) - 1) << 1
    bits = np.zeros(image.num_cells + 1, np.uint16)
    for number, label in enumerate(image.labels, start=1):
        bits[number] = sum(1 << (1 + ontology.index(name)) for name in label.cell_types) or any_class
    inside = image.instances > 0
    outside = np.where(image.unknown, np.uint16(any_class | int(BACKGROUND_BIT)), BACKGROUND_BIT)
    allowed = np.where(inside, bits[image.instances], outside).astype(np.uint16)
    return Labels(instances=image.instances, allowed=allowed, flow_known=inside)
