"""Labelled images for tests: small ones by hand, and random ones for properties."""

import numpy as np
from hypothesis import strategies as st

from cellmill_schemas.ontology import get_ontology
from cellmill_training.datasets.labelled_image import CellLabel, LabelledImage, LabelOrigin, densely_numbered

REFINED7 = get_ontology("refined7")
OF_DATASET = LabelOrigin("dataset", "made up")


def square_image(
    image_id: str = "a",
    *,
    labels: tuple[CellLabel, ...] | None = None,
    group: str | None = None,
    tissue: str = "skin",
    fold: str = "",
    seed: int = 0,
) -> LabelledImage:
    """32 x 24 px of noise with 4 x 4 px nuclei in a row, one for each label."""
    given = (CellLabel(("neoplastic",), OF_DATASET),) if labels is None else labels
    instances = np.zeros((24, 32), np.int32)
    for number in range(1, len(given) + 1):
        instances[4:8, 5 * number : 5 * number + 4] = number
    return LabelledImage(
        image_id=image_id,
        source="made up",
        tissue=tissue,
        split_group=group or image_id,
        fold=fold,
        mpp=0.5,
        image=np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8),
        instances=instances,
        labels=given,
        unknown=np.zeros((24, 32), np.bool_),
    )


@st.composite
def labelled_images(draw: st.DrawFn, *, image_id: str = "any") -> LabelledImage:
    """Any image: any size, any labels of `refined7` and any origin."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    instances, numbers = densely_numbered(rng.integers(0, draw(st.integers(1, 30)), (height, width)))
    texts = st.text(max_size=8)
    origins = st.builds(
        LabelOrigin,
        st.sampled_from(["dataset", "relabel", "weak", "model", "annotator", "consensus"]),
        st.text(min_size=1, max_size=8),
        st.none() | st.floats(0.0, 1.0),
    )
    types = st.sets(st.sampled_from(REFINED7.names), max_size=3)
    labels = tuple(
        CellLabel(tuple(sorted(draw(types), key=REFINED7.index)), draw(origins)) for _ in range(len(numbers))
    )
    return LabelledImage(
        image_id=image_id,
        source=draw(texts),
        tissue=draw(texts),
        split_group=draw(st.text(min_size=1, max_size=8)),
        fold=draw(texts),
        mpp=draw(st.floats(0.01, 10.0)),
        image=rng.integers(0, 256, (height, width, 3), np.uint8),
        instances=instances,
        labels=labels,
        unknown=rng.random((height, width)) < 0.3,
    )


def assert_same(one: LabelledImage, other: LabelledImage) -> None:
    """Every field equal, arrays with their types."""
    for name in ("image", "instances", "unknown"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), strict=True)
    for name in ("image_id", "source", "tissue", "split_group", "fold", "mpp", "labels"):
        assert getattr(one, name) == getattr(other, name)
