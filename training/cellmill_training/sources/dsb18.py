"""dsb18 (BBBC038 stage 1, tissue images): real masks without types, mostly hematoxylin-like stain only. CC0.

Read and scaled by `datasets.readers.dsb`; here it gets the splits that the packaged model's card states.
"""

from pathlib import Path

from cellmill_training.datasets.readers.dsb import read_label_images
from cellmill_training.datasets.training_samples import labels_of
from cellmill_training.samples import TissueSample, make_sample, training_ontology
from cellmill_training.splits import split_stratified

__all__ = ["read_dsb18"]

_PREFIX = "dsb18-"


def read_dsb18(folder: Path) -> list[TissueSample]:
    """All images of `folder` (images/, labels/, manifest.csv), each with its split."""
    images = list(read_label_images(folder))
    # The hash that decides the split is of the parent field's own name.
    fields = [image.split_group.removeprefix(_PREFIX) for image in images]
    stains = {field: image.tissue for field, image in zip(fields, images, strict=True)}
    splits = split_stratified(stains, test_fraction=0.2, num_validation=2)
    return [
        make_sample(
            image.image,
            labels_of(image, training_ontology()),
            mpp=image.mpp,
            name=image.image_id.removeprefix(_PREFIX),
            source="dsb18_he" if image.tissue == "pink_purple_HE" else "dsb18",
            group=field,
            split=splits[field],
        )
        for image, field in zip(images, fields, strict=True)
    ]
