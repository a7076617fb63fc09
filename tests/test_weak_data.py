"""Claims about the chain's data: fragments, annotations, masks, resolutions, stains, weak labels, what is matched."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from weak_helpers import BY_TRUTH, ROUND_OR_LONG, nuclei_image, two_discs, with_types

from cellmill.cohort.manifest import list_sources
from cellmill.grid import Box
from cellmill_schemas.ontology import get_ontology
from cellmill_training.datasets.labelled_image import CellLabel, LabelledImage, LabelOrigin
from cellmill_training.weak.annotated_slides import AnnotatedSlides, annotated_windows
from cellmill_training.weak.finding import FindingConfig, nucleus_instances
from cellmill_training.weak.fragments import fragment_boxes
from cellmill_training.weak.masks import NUCLEUS, OUTSIDE, UNKNOWN, at_resolution, class_masks, nucleus_map
from cellmill_training.weak.stain_normalising import REFERENCE, StainProfile, find_stains, normalised, normalised_image
from cellmill_training.weak.typing_nuclei import BACKGROUND, expert_nuclei, weak_nuclei, with_background
from cellmill_training.weak.weak_source import WeakSource, difficulty, error_chances, weakly_labelled

_IKEM = get_ontology("ikem3")
_WEAK = AnnotatedSlides(_IKEM, LabelOrigin("weak", "qupath"), complete=True, mpp=0.5, window_px=256)
_EXPERT = AnnotatedSlides(_IKEM, LabelOrigin("annotator", "A. B."), complete=False, mpp=0.5, window_px=256)


# ---------------------------------------------------------------- fragments


def test_each_fragment_has_its_smallest_box_and_dust_has_none() -> None:
    tissue = np.zeros((8, 12), np.bool_)
    tissue[1:4, 2:5] = True
    tissue[5:8, 7:11] = True
    tissue[0, 11] = True
    assert fragment_boxes(tissue, stride_px=10, min_squares=2) == (Box(20, 10, 50, 40), Box(70, 50, 110, 80))


@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_fragments_are_disjoint_and_hold_all_tissue(tissue: np.ndarray) -> None:
    boxes = fragment_boxes(tissue, stride_px=1, min_squares=1)
    held = np.zeros(tissue.shape, int)
    for box in boxes:
        held[box.y0 : box.y1, box.x0 : box.x1] += 1
    assert held.max(initial=0) <= 1
    assert (held[tissue] == 1).all()


# ---------------------------------------------------------------- slides with GeoJSON


def _square(x: float, y: float, side: float) -> dict[str, Any]:
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    return {"type": "Polygon", "coordinates": [ring]}


def _feature(geometry: dict[str, Any], name: str) -> dict[str, Any]:
    return {
        "type": "Feature",
        "geometry": geometry,
        "properties": {"objectType": "detection", "classification": {"name": name}},
    }


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pieces of pink tissue on glass, 0.25 um/px, with a dark square of 20 px in each."""
    path = tmp_path_factory.mktemp("slides") / "heart.tif"
    pixels = np.full((1600, 3000, 3), 245, np.uint8)
    pixels[200:1200, 200:1000] = (225, 160, 200)
    pixels[300:1400, 1800:2700] = (225, 160, 200)
    pixels[400:420, 400:420] = pixels[600:620, 2000:2020] = (80, 40, 120)
    per_cm = (40_000, 40_000)
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(256, 256), resolution=per_cm, resolutionunit="CENTIMETER")
    return path


def _annotate(folder: Path, features: Sequence[dict[str, Any]], name: str = "heart.geojson.gz") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(gzip.compress(json.dumps({"type": "FeatureCollection", "features": features}).encode()))
    return folder


def test_annotated_slides_become_windows_of_fragments_with_classes_where_they_were_drawn(
    slide: Path, tmp_path: Path
) -> None:
    features = [_feature(_square(400, 400, 20), "Immune cells"), _feature(_square(2000, 600, 20), "Muscle cells")]
    images = list(annotated_windows([str(slide)], _annotate(tmp_path / "a", features), _WEAK))
    assert {image.split_group for image in images} == {"heart"}
    assert {image.image_id.split("_")[0] for image in images} == {"heart~f0", "heart~f1"}
    labelled = [image for image in images if image.num_cells]
    assert [label for image in labelled for label in image.labels] == [
        CellLabel(("immune",), LabelOrigin("weak", "qupath")),
        CellLabel(("muscle",), LabelOrigin("weak", "qupath")),
    ]
    for image in labelled:
        assert image.mpp == 0.5
        assert int((image.instances > 0).sum()) == 100  # 20 px of 0.25 um are 10 px of 0.5
        assert image.image[image.instances > 0].mean() < 110 < image.image[image.instances == 0].mean()
    assert not any(image.unknown.any() for image in images)
    area_px = sum(image.instances.size for image in images)
    assert area_px < 0.6 * 1600 * 3000 / 4  # the glass between and around is not kept


def test_pseudonyms_stand_for_the_slides_names(slide: Path, tmp_path: Path) -> None:
    secret = b"a secret of enough bytes, of a test"
    (source,) = list_sources([str(slide)], secret=secret)
    assert "heart" not in source.slide_id
    features = [_feature(_square(400, 400, 20), "other")]
    folder = _annotate(tmp_path / "a", features, name=f"{source.slide_id}.geojson.gz")
    (image,) = annotated_windows([str(slide)], folder, _EXPERT, secret=secret)
    assert image.split_group == source.slide_id
    assert "heart" not in image.image_id
    with pytest.raises(ValueError, match="is not among --slides"):
        list(annotated_windows([str(slide)], folder, _EXPERT))


def test_between_an_experts_outlines_nothing_is_known_and_windows_without_are_left_out(
    slide: Path, tmp_path: Path
) -> None:
    features = [_feature(_square(400, 400, 20), "other")]
    (image,) = annotated_windows([str(slide)], _annotate(tmp_path / "a", features), _EXPERT)
    assert image.labels == (CellLabel(("other",), LabelOrigin("annotator", "A. B.")),)
    np.testing.assert_array_equal(image.unknown, image.instances == 0)


def test_weak_and_expert_windows_of_one_slide_have_the_same_names_and_pixels(slide: Path, tmp_path: Path) -> None:
    features = [_feature(_square(400, 400, 20), "other")]
    weak = {i.image_id: i for i in annotated_windows([str(slide)], _annotate(tmp_path / "a", features), _WEAK)}
    (expert,) = annotated_windows([str(slide)], _annotate(tmp_path / "b", features), _EXPERT)
    np.testing.assert_array_equal(weak[expert.image_id].image, expert.image)


@pytest.mark.parametrize(
    ("feature", "complaint"),
    [
        (_feature(_square(1, 1, 9), "eosinophil"), r"heart\.geojson\.gz, feature 1: 'eosinophil' is not a class"),
        (_feature({"type": "Point", "coordinates": [1, 1]}, "other"), r"heart\.geojson\.gz, feature 1: a nucleus is a"),
        (_feature({"type": "Polygon", "coordinates": [[[1, 1]]]}, "other"), r"feature 1: its coordinates form no"),
        ({"type": "Feature", "properties": 3}, r"heart\.geojson\.gz, feature 1 is no GeoJSON feature"),
    ],
    ids=["unknown class", "point", "broken polygon", "no feature"],
)
def test_a_bad_feature_is_named_with_its_file(
    slide: Path, tmp_path: Path, feature: dict[str, Any], complaint: str
) -> None:
    folder = _annotate(tmp_path / "a", [_feature(_square(400, 400, 20), "other"), feature])
    with pytest.raises(ValueError, match=complaint):
        list(annotated_windows([str(slide)], folder, _WEAK))


def test_a_bad_file_a_missing_slide_and_an_empty_folder_are_named(slide: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"holds no <slide_id>\.geojson"):
        list(annotated_windows([str(slide)], folder, _WEAK))
    (folder / "heart.geojson").write_text("{broken", encoding="utf-8")
    with pytest.raises(ValueError, match=r"heart\.geojson is no GeoJSON"):
        list(annotated_windows([str(slide)], folder, _WEAK))
    (folder / "heart.geojson").rename(folder / "liver.geojson")
    with pytest.raises(ValueError, match=r"liver\.geojson is for slide 'liver', which is not among --slides"):
        list(annotated_windows([str(slide)], folder, _WEAK))


# ---------------------------------------------------------------- masks and resolutions


def test_each_class_has_a_mask_and_together_they_are_the_nuclei() -> None:
    image = nuclei_image("any")
    masks = class_masks(image, ROUND_OR_LONG)
    assert masks.shape == (2, *image.instances.shape)
    np.testing.assert_array_equal(masks.sum(axis=0), image.instances > 0)
    for number, label in enumerate(image.labels, start=1):
        assert masks[ROUND_OR_LONG.index(label.cell_types[0])][image.instances == number].all()


def test_unknown_pixels_are_told_from_background_and_instances_win() -> None:
    image = nuclei_image("any")
    unknown = np.ones_like(image.unknown)
    unknown[:5] = False
    values = nucleus_map(LabelledImage(**{**vars(image), "unknown": unknown}))
    assert (values[image.instances > 0] == NUCLEUS).all()
    assert (values[:5][image.instances[:5] == 0] == OUTSIDE).all()
    assert (values[5:][image.instances[5:] == 0] == UNKNOWN).all()


@pytest.mark.parametrize("factor", [2, 4])
def test_a_coarser_resolution_keeps_labels_where_they_are(factor: int) -> None:
    image = nuclei_image("any")
    coarse = at_resolution(image, factor)
    assert coarse.mpp == image.mpp * factor and coarse.image_id == f"any@{factor}"
    assert coarse.instances.shape == (128 // factor, 128 // factor)
    assert coarse.num_cells >= 0.9 * image.num_cells
    fine = class_masks(image, ROUND_OR_LONG).mean(axis=(1, 2))
    np.testing.assert_allclose(class_masks(coarse, ROUND_OR_LONG).mean(axis=(1, 2)), fine, atol=0.01)
    assert at_resolution(image, 1) is image


# ---------------------------------------------------------------- stains


def _stained(profile: StainProfile, *, seed: int = 0) -> np.ndarray:
    """Tissue of two stains in known amounts."""
    rng = np.random.default_rng(seed)
    amounts = rng.uniform(0.0, 1.0, (96 * 96, 2)) * profile.strong_od / 0.99
    amounts[: 96 * 40, 0] *= 0.05  # eosin alone
    amounts[96 * 40 : 96 * 60, 1] *= 0.05  # hematoxylin alone
    od = amounts @ profile.vectors
    return np.rint(255 * 10.0**-od).clip(0, 255).astype(np.uint8).reshape(96, 96, 3)


def _other_lab() -> StainProfile:
    vectors = np.array([[0.55, 0.75, 0.38], [0.20, 0.90, 0.30]])
    return StainProfile(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.array([1.3, 0.9]))


def test_macenko_finds_the_stains_that_tissue_was_made_with() -> None:
    lab = _other_lab()
    found = find_stains(_stained(lab))
    assert found is not None
    assert (np.sum(found.vectors * lab.vectors, axis=1) > 0.99).all()
    np.testing.assert_allclose(found.strong_od, lab.strong_od, rtol=0.12)


def test_tissue_of_two_laboratories_looks_alike_once_normalised() -> None:
    ours, theirs = _stained(REFERENCE), _stained(_other_lab())
    before = np.abs(ours.astype(int) - theirs).mean()
    profiles = find_stains(ours), find_stains(theirs)
    assert profiles[0] is not None and profiles[1] is not None
    after = np.abs(normalised(ours, profiles[0]).astype(int) - normalised(theirs, profiles[1])).mean()
    assert after < 0.25 * before


def test_glass_has_no_stains_and_stays_as_it_is() -> None:
    image = nuclei_image("any", number=0)
    glass = LabelledImage(**{**vars(image), "image": np.full_like(image.image, 244)})
    assert find_stains(glass.image) is None
    assert normalised_image(glass) is glass


# ---------------------------------------------------------------- a weak source


def test_small_pale_and_crowded_nuclei_are_the_hard_ones() -> None:
    image = nuclei_image("any", number=40)
    area = np.bincount(image.instances.ravel())[1:]
    brightness = np.array([image.image[image.instances == k + 1].mean() for k in range(image.num_cells)])
    hardness = difficulty(image)
    assert np.corrcoef(hardness, area)[0, 1] < -0.2
    assert np.corrcoef(hardness, brightness)[0, 1] > 0.2


def test_a_weak_source_errs_at_its_rate_on_the_hard_ones_first_and_never_more_often_than_not() -> None:
    source = WeakSource(error_rate=0.2)
    wrong: list[bool] = []
    chances: list[float] = []
    for number in range(40):
        image = nuclei_image(f"i{number}", number=40)
        weak = weakly_labelled(image, source)
        kept = {int(image.instances[weak.instances == k][0]): k for k in range(1, weak.num_cells + 1)}
        wrong += [
            k not in kept or weak.labels[kept[k] - 1].cell_types != image.labels[k - 1].cell_types
            for k in range(1, image.num_cells + 1)
        ]
        chances += error_chances(difficulty(image), source).tolist()
    order = np.argsort(chances)
    easy, hard = np.array(wrong)[order[: len(order) // 3]], np.array(wrong)[order[-len(order) // 3 :]]
    assert np.mean(chances) == pytest.approx(0.2, abs=1e-6)
    assert np.mean(wrong) == pytest.approx(0.2, abs=0.03)
    assert hard.mean() > 2.5 * easy.mean()
    assert max(chances) < 0.5


def test_weak_labels_follow_from_seed_and_image_and_say_who_gave_them() -> None:
    image = nuclei_image("any")
    one, same = weakly_labelled(image, WeakSource()), weakly_labelled(image, WeakSource())
    assert one.labels == same.labels
    assert {label.origin for label in one.labels} == {LabelOrigin("weak", "synthetic-weak")}
    others = [weakly_labelled(image, WeakSource(seed=seed)).labels for seed in range(1, 6)]
    assert any(labels != one.labels for labels in others)
    with pytest.raises(ValueError, match=r"error_rate < max_error < 0\.5"):
        WeakSource(error_rate=0.6)


# ---------------------------------------------------------------- found nuclei and who typed them


def test_touching_nuclei_are_parted_and_specks_left_out() -> None:
    probability = two_discs()
    probability[2, 2] = 1.0
    found = nucleus_instances(probability, mpp=0.5, config=FindingConfig())
    assert found.max() == 2
    areas = np.bincount(found.ravel())[1:]
    assert areas.min() > 0.8 * areas.max()
    assert found[20, 15] != found[20, 26] and found[2, 2] == 0
    assert nucleus_instances(np.zeros((9, 9), np.float32), mpp=0.5, config=FindingConfig()).max() == 0


def test_one_disc_is_one_nucleus_of_exactly_its_pixels() -> None:
    probability = two_discs(apart_px=0)
    found = nucleus_instances(probability, mpp=0.5, config=FindingConfig())
    np.testing.assert_array_equal(found, probability.astype(np.int32))


def _annotated(unknown: bool = False) -> tuple[LabelledImage, np.ndarray]:
    """One annotation of 8 x 8 px; found: most of it, and a nucleus that nobody annotated."""
    image = nuclei_image("any", side=40, number=0)
    instances = np.zeros((40, 40), np.int32)
    instances[4:12, 4:12] = 1
    annotated = LabelledImage(
        **{
            **vars(image),
            "instances": instances,
            "labels": (CellLabel(("round",), BY_TRUTH),),
            "unknown": np.full((40, 40), unknown),
        }
    )
    found = np.zeros((40, 40), np.int32)
    found[20:30, 20:30], found[5:13, 5:13] = 1, 2
    return annotated, found


def test_a_nucleus_takes_the_class_that_covers_it_and_one_the_weak_source_missed_is_background() -> None:
    origin = LabelOrigin("weak", "qupath")
    image, found = _annotated()
    typed = weak_nuclei(with_types(image, ["round"], LabelOrigin("dataset", "qupath")), found, origin)
    assert [label.cell_types for label in typed.labels] == [(BACKGROUND,), ("round",)]
    assert {label.origin for label in typed.labels} == {origin}
    image, found = _annotated(unknown=True)
    assert weak_nuclei(image, found, origin).labels[0].cell_types == ()


def test_a_nucleus_that_the_expert_did_not_type_is_left_out() -> None:
    image, found = _annotated(unknown=True)
    typed = expert_nuclei(image, found)
    assert [label.cell_types for label in typed.labels] == [("round",)]
    np.testing.assert_array_equal(typed.instances > 0, found == 2)
    assert with_background(ROUND_OR_LONG).names == ("round", "long", BACKGROUND)
