"""Claims about the synthetic tissue: windows agree, truth is exact, types are not given away by size and darkness."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

from cellmill.grid import Box
from cellmill.synthetic.cell_types import TYPE_NAMES
from cellmill.synthetic.slide import SyntheticSlide
from cellmill.synthetic.tissue import SyntheticRegion, render_labels, render_region
from cellmill_schemas.ontology import get_ontology


def test_types_are_those_of_refined7() -> None:
    assert get_ontology("refined7").names == TYPE_NAMES


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    x=st.integers(-3000, 3000),
    y=st.integers(-3000, 3000),
    cut=st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(20, 90), st.integers(20, 90)),
    mpp=st.sampled_from([0.5, 0.25, 0.4321]),
)
def test_every_window_of_a_slide_shows_the_same_pixels(
    seed: int, x: int, y: int, cut: tuple[int, int, int, int], mpp: float
) -> None:
    whole = render_region(seed, Box(x, y, x + 150, y + 150), mpp=mpp)
    dx, dy, width, height = cut
    part = render_region(seed, Box(x + dx, y + dy, x + dx + width, y + dy + height), mpp=mpp)
    rows, cols = slice(dy, dy + height), slice(dx, dx + width)
    assert np.array_equal(part.image, whole.image[rows, cols])
    assert np.array_equal(_as_keys(part), _as_keys(whole)[rows, cols])
    shared = np.isin(whole.cells.keys, part.cells.keys)
    assert np.array_equal(part.cells.types, whole.cells.types[shared])
    assert np.array_equal(part.cells.areas_px, whole.cells.areas_px[shared])


def test_a_window_whose_margin_alone_meets_the_blurred_patch_shows_the_same_pixels() -> None:
    slide = SyntheticSlide.draw(2, width_mm=2.0, height_mm=1.5, mpp=0.5)
    part = slide.render(Box(2048, 1536, 2560, 2048)).image
    whole = slide.render(Box(2000, 1536, 2600, 2048)).image
    assert np.array_equal(part, whole[:, 48 : 48 + 512])


def test_labels_without_the_picture_are_the_same() -> None:
    box = Box(100, -40, 300, 200)
    full, quick = render_region(5, box), render_labels(5, box)
    assert np.array_equal(full.labels, quick.labels)
    assert np.array_equal(full.cells.keys, quick.cells.keys)


def test_each_label_is_one_connected_piece_that_holds_its_centre() -> None:
    cv2 = pytest.importorskip("cv2")
    for seed in range(4):
        box = Box(0, 0, 400, 400)
        region = render_labels(seed, box)
        for label, (center, area) in enumerate(
            zip(region.cells.centers_px, region.cells.areas_px, strict=True), start=1
        ):
            mask = (region.labels == label).astype(np.uint8)
            touches_edge = mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()
            if touches_edge:
                continue
            assert cv2.connectedComponents(mask, connectivity=4)[0] == 2
            assert mask[int(np.floor(center[1])), int(np.floor(center[0]))]
            assert mask.sum() == area


def test_types_are_not_separable_by_size_and_darkness_alone() -> None:
    features, types = _size_and_darkness(range(40))
    counts = np.bincount(types, minlength=7)
    assert (counts >= 60).all(), counts
    order = np.random.default_rng(0).permutation(len(types))
    train, held_out = order[: len(order) // 2], order[len(order) // 2 :]
    scaler = StandardScaler().fit(features[train])
    model = LogisticRegression(class_weight="balanced", max_iter=2000).fit(
        scaler.transform(features[train]), types[train]
    )
    accuracy = balanced_accuracy_score(types[held_out], model.predict(scaler.transform(features[held_out])))
    assert accuracy < 0.75


def _as_keys(region: SyntheticRegion) -> np.ndarray:
    return np.concatenate([[0], region.cells.keys])[region.labels]


def _size_and_darkness(seeds: range) -> tuple[np.ndarray, np.ndarray]:
    """Area and mean red optical density (hematoxylin's channel) of whole nuclei over several slides."""
    features, types = [], []
    for seed in seeds:
        region = render_region(seed, Box(0, 0, 512, 512))
        od = -np.log10(np.maximum(region.image[..., 0], 1) / 245.0)
        flat = region.labels.ravel()
        seen = np.bincount(flat, minlength=len(region.types) + 1)[1:]
        darkness = np.bincount(flat, weights=od.ravel(), minlength=len(region.types) + 1)[1:] / np.maximum(seen, 1)
        whole = seen == region.cells.areas_px
        features.append(np.stack([np.log(seen[whole]), darkness[whole]], axis=1))
        types.append(region.types[whole])
    return np.concatenate(features), np.concatenate(types)
