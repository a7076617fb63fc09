"""Readers of published sets, each on a tiny set in the real layout with content worked out by hand."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.io import savemat
from shapely.geometry import Polygon

from cellmill.grid import Box
from cellmill.synthetic.tissue import render_region
from cellmill_schemas.ontology import get_ontology
from cellmill_training.datasets.labelled_image import LabelledImage, LabelOrigin
from cellmill_training.datasets.readers.conic import read_conic
from cellmill_training.datasets.readers.dsb import read_dsb
from cellmill_training.datasets.readers.matlab import read_consep, read_lizard
from cellmill_training.datasets.readers.pannuke import read_pannuke
from cellmill_training.datasets.readers.polygons import paint_polygons
from cellmill_training.datasets.readers.qupath import read_puma, read_qupath
from cellmill_training.datasets.readers.synthetic import render_images

PUMA10 = get_ontology("puma10")


def _types(image: LabelledImage) -> list[tuple[str, ...]]:
    return [label.cell_types for label in image.labels]


def _noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def _write_png(path: Path, rgb: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), rgb[..., ::-1] if rgb.ndim == 3 else rgb)


# ----------------------------------------------------------------------------------------------------------- PanNuke


def _write_pannuke(folder: Path, fold: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two patches of a fold, unpacked as published."""
    images = _noise(2, 256, 256, 3, seed=fold).astype(np.float64)
    masks = np.zeros((2, 256, 256, 6))
    masks[0, 0:3, 0:4, 0] = 5  # neoplastic, cut by the border
    masks[0, 10:14, 10:14, 0] = 9
    masks[0, 12:16, 12:16, 1] = 9  # inflammatory: another nucleus of the same number, over the corner of the first
    masks[0, 200, 200, 3] = 2  # dead: one pixel
    masks[0, 100:110, 100:110, 4] = 1  # epithelial with a hole of one pixel
    masks[0, 105, 105, 4] = 0
    masks[..., 5] = masks[..., :5].max(axis=-1) == 0
    places = folder / f"Fold {fold}/images/fold{fold}", folder / f"Fold {fold}/masks/fold{fold}"
    for place in places:
        place.mkdir(parents=True)
    np.save(places[0] / "images.npy", images)
    np.save(places[0] / "types.npy", np.array(["Breast", "Bile-duct"]))
    np.save(places[1] / "masks.npy", masks)
    return images, masks


def test_pannukes_channels_become_nuclei_with_types(tmp_path: Path) -> None:
    pixels, _ = _write_pannuke(tmp_path, 1)
    _write_pannuke(tmp_path, 2)
    images = list(read_pannuke(tmp_path))
    assert [image.image_id for image in images] == [f"pannuke-fold{fold}-000{k}" for fold in (1, 2) for k in (0, 1)]
    assert [image.tissue for image in images[:2]] == ["Breast", "Bile-duct"]
    first = images[0]
    assert (first.fold, first.source, first.mpp, first.split_group) == ("fold1", "pannuke", 0.25, first.image_id)
    np.testing.assert_array_equal(first.image, pixels[0].astype(np.uint8))
    assert _types(first) == [("neoplastic",), ("neoplastic",), ("inflammatory",), ("dead",), ("epithelial",)]
    assert np.bincount(first.instances.ravel())[1:].tolist() == [12, 12, 16, 1, 99]
    assert first.instances[13, 13] == 3  # the later channel wins
    assert first.instances[105, 105] == 0
    assert not first.unknown.any()
    assert first.labels[0].origin == LabelOrigin("dataset", "pannuke")
    assert images[1].num_cells == 0


def test_pannuke_says_which_file_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no images\.npy"):
        next(read_pannuke(tmp_path))
    _, masks = _write_pannuke(tmp_path, 1)
    place = tmp_path / "Fold 1/masks/fold1/masks.npy"
    for wrong, complaint in (
        (masks[:1], r"images\.npy has 2 patches, but .*masks\.npy has 1"),
        (masks[..., :5], r"masks\.npy must have shape \(N, 256, 256, 6\), got \(2, 256, 256, 5\)"),
        (masks + 0.5, r"masks\.npy, patch 0: instance labels must be whole"),
    ):
        np.save(place, wrong)
        with pytest.raises(ValueError, match=complaint):
            list(read_pannuke(tmp_path))
    np.save(place, masks)
    types = tmp_path / "Fold 1/images/fold1/types.npy"
    np.save(types, np.array(["Breast", "Colon"], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"types\.npy.*pickled objects are never loaded"):
        list(read_pannuke(tmp_path))
    types.unlink()
    with pytest.raises(ValueError, match=r"types\.npy of fold1 is missing"):
        list(read_pannuke(tmp_path))


# ------------------------------------------------------------------------------------- CoNSeP, Lizard and CoNIC


def _write_consep(folder: Path, name: str, *, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    instances, types = np.zeros((40, 50)), np.zeros((40, 50))
    instances[0:4, 0:4], types[0:4, 0:4] = 2, 4
    instances[10:14, 10:14], types[10:14, 10:14] = 7, 2
    types[10, 10:14] = 1  # a quarter of the pixels says otherwise
    instances[30, 30] = 8  # a nucleus of no class
    (folder / "Labels").mkdir(parents=True, exist_ok=True)
    savemat(str(folder / "Labels" / f"{name}.mat"), {"inst_map": instances, "type_map": types})
    _write_png(folder / "Images" / f"{name}.png", _noise(40, 50, 3, seed=seed))
    return instances, types


def test_consep_has_the_class_of_most_pixels(tmp_path: Path) -> None:
    _write_consep(tmp_path / "Train", "train_1")
    _write_consep(tmp_path / "Test", "test_1", seed=1)
    test, train = read_consep(tmp_path)
    assert (train.fold, test.fold, train.tissue, train.mpp) == ("train", "test", "colon", 0.25)
    np.testing.assert_array_equal(train.image, _noise(40, 50, 3))
    assert _types(train) == [("malignant epithelial",), ("inflammatory",), ()]
    assert np.bincount(train.instances.ravel())[1:].tolist() == [16, 16, 1]


def test_one_corrupt_file_among_many_is_named(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        _write_consep(tmp_path, name)
    path = tmp_path / "Labels" / "b.mat"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"b\.mat"):
        list(read_consep(tmp_path))
    instances, types = _write_consep(tmp_path, "b")
    for arrays, complaint in (
        ({"inst_map": instances}, r"b\.mat lacks type_map"),
        ({"inst_map": instances, "type_map": types[:5]}, r"b\.mat: instances are \(40, 50\), but types are \(5, 50\)"),
        ({"inst_map": instances, "type_map": types * 5}, r"b\.mat: class values must be 0 to 7.*got 0 to 20"),
        ({"inst_map": instances[:5], "type_map": types[:5]}, r"b\.mat: labels are \(5, 50\), but the image"),
        ({"inst_map": np.array(["x"]), "type_map": types}, r"b\.mat: inst_map must hold numbers"),
    ):
        savemat(str(path), arrays)
        with pytest.raises(ValueError, match=complaint):
            list(read_consep(tmp_path))


def test_lizards_table_names_the_class_of_each_id(tmp_path: Path) -> None:
    instances = np.zeros((30, 30), np.int32)
    instances[0:3, 0:3], instances[10:12, 10:12], instances[20, 20] = 4, 9, 11
    (tmp_path / "Labels").mkdir()
    table = {"inst_map": instances, "id": np.array([[9], [4]]), "class": np.array([[5], [2]])}
    savemat(str(tmp_path / "Labels" / "glas_1.mat"), table)
    _write_png(tmp_path / "Lizard_Images1" / "glas_1.png", _noise(30, 30, 3))
    (tmp_path / "info.csv").write_text("Filename,Source,Split\nglas_1,glas,2\n")
    (image,) = read_lizard(tmp_path)
    assert _types(image) == [("epithelial",), ("eosinophil",), ()]  # 11 is not in the table
    assert (image.fold, image.mpp, image.split_group) == ("fold2", 0.5, "lizard-glas_1")
    savemat(str(tmp_path / "Labels" / "glas_1.mat"), {**table, "class": np.array([[5], [7]])})
    with pytest.raises(ValueError, match=r"glas_1\.mat: id and class.*values \[5, 7\]"):
        list(read_lizard(tmp_path))
    savemat(str(tmp_path / "Labels" / "crag_1.mat"), table)
    with pytest.raises(ValueError, match=r"crag_1\.mat has no image crag_1\.png"):
        list(read_lizard(tmp_path))


def test_conics_patches_of_one_region_are_one_group(tmp_path: Path) -> None:
    images = _noise(3, 256, 256, 3)
    labels = np.zeros((3, 256, 256, 2), np.uint16)
    labels[1, 250:256, 250:256] = (1, 6)
    labels[1, 0:2, 0:2] = (2, 1)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "labels.npy", labels)
    with pytest.raises(ValueError, match=r"patch_info\.csv is missing"):
        list(read_conic(tmp_path))
    (tmp_path / "patch_info.csv").write_text("patch_info\nconsep_1-0000\nconsep_1-0001\ndpath_10-0000\n")
    one, two, three = read_conic(tmp_path)
    assert one.split_group == two.split_group == "lizard-consep_1"
    assert three.split_group == "lizard-dpath_10"
    assert _types(two) == [("connective",), ("neutrophil",)]
    assert (one.num_cells, two.image_id) == (0, "conic-consep_1-0001")
    np.testing.assert_array_equal(three.image, images[2])
    np.save(tmp_path / "images.npy", images[:2])
    with pytest.raises(ValueError, match=r"images\.npy has 2 patches, labels\.npy 3 and patch_info\.csv 3"):
        list(read_conic(tmp_path))


# --------------------------------------------------------------------------------------------------------------- DSB


def test_dsb_takes_a_mask_a_nucleus(tmp_path: Path) -> None:
    image = _noise(60, 80, 3)
    _write_png(tmp_path / "f00d/images/f00d.png", image)
    for number, (y, x) in enumerate([(0, 0), (30, 40)]):
        mask = np.zeros((60, 80), np.uint8)
        mask[y : y + 20, x : x + 20] = 255
        _write_png(tmp_path / f"f00d/masks/{number}.png", mask)
    (one,) = read_dsb(tmp_path)
    np.testing.assert_array_equal(one.image, image)
    assert _types(one) == [(), ()]
    assert np.bincount(one.instances.ravel())[1:].tolist() == [400, 400]
    assert one.mpp == pytest.approx(7.5 / (2 * np.sqrt(400 / np.pi)))
    assert next(read_dsb(tmp_path, mpp=0.31)).mpp == 0.31
    _write_png(tmp_path / "f00d/masks/1.png", np.zeros((60, 81), np.uint8))
    with pytest.raises(ValueError, match=r"1\.png is \(60, 81\) px, but its image is \(60, 80\)"):
        list(read_dsb(tmp_path))


def test_dsbs_label_images_are_split_by_their_field(tmp_path: Path) -> None:
    for name in ("a", "b"):
        labels = np.zeros((60, 80), np.uint16)
        labels[0:10, 0:10] = 300
        _write_png(tmp_path / f"images/{name}.png", _noise(60, 80, 3))
        cv2.imwrite(str(_made(tmp_path / "labels") / f"{name}.png"), labels)
    one, two = read_dsb(tmp_path)
    assert (one.split_group, two.split_group) == ("dsb18-a", "dsb18-b")
    rows = [{"image": name, "parent_field": "7", "stain_group": "pink"} for name in ("a", "b")]
    with (tmp_path / "manifest.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    one, two = read_dsb(tmp_path)
    assert (one.split_group, two.split_group, one.tissue) == ("dsb18-7", "dsb18-7", "pink")
    (tmp_path / "labels/b.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"b\.png is missing or not a label image"):
        list(read_dsb(tmp_path))


def test_an_image_without_a_nucleus_has_a_scale_too(tmp_path: Path) -> None:
    _write_png(tmp_path / "e/images/e.png", _noise(10, 10, 3))
    (tmp_path / "e/masks").mkdir()
    (image,) = read_dsb(tmp_path)
    assert (image.num_cells, image.mpp) == (0, 0.25)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# ------------------------------------------------------------------------------------------------------ QuPath, PUMA


def _square(x: float, y: float, side: float, *holes: tuple[float, float, float]) -> dict[str, Any]:
    rings = [
        [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]] for x, y, side in ((x, y, side), *holes)
    ]
    return {"type": "Polygon", "coordinates": rings}


def _feature(geometry: dict[str, Any] | None, classification: Any = None, **top: Any) -> dict[str, Any]:
    properties = {"objectType": "detection"} | ({} if classification is None else {"classification": classification})
    return {"type": "Feature", "id": "some-id", "geometry": geometry, "properties": properties, **top}


def _write_qupath(folder: Path, features: list[Any], *, name: str = "roi") -> None:
    _write_png(folder / f"{name}.png", _noise(30, 40, 3))
    (folder / f"{name}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def _read_qupath(folder: Path, **options: Any) -> LabelledImage:
    (image,) = read_qupath(folder, ontology=PUMA10, mpp=0.25, source="lab", **options)
    return image


def test_qupaths_objects_become_nuclei(tmp_path: Path) -> None:
    pair = {"type": "MultiPolygon", "coordinates": [_square(0, 20, 2)["coordinates"], _square(3, 20, 2)["coordinates"]]}
    features = [
        _feature(_square(2, 3, 4, (3, 4, 1)), {"name": "nuclei_tumor", "color": [200, 0, 0]}),  # a hole of one pixel
        _feature(_square(-2, -2, 3), "Lymphocyte"),  # cut by the border: one pixel is left
        _feature(pair, {"names": ["stroma", "positive"]}),
        _feature(_square(20, 10, 8), {"name": "apoptosis"}, nucleusGeometry=_square(22, 12, 4)),
        _feature(_square(30, 20, 5), {"name": "Ignore*"}),
        _feature(_square(0, 0, 30), {"name": "Region*"}),
        _feature(_square(10, 24, 2)),
        _feature(_square(35, 25, 0), {"name": "tumor"}),  # encloses nothing
    ]
    _write_qupath(tmp_path, features)
    image = _read_qupath(tmp_path)
    assert _types(image) == [("tumor",), ("lymphocyte",), ("stroma",), ("apoptosis",), ()]
    assert np.bincount(image.instances.ravel())[1:].tolist() == [15, 1, 8, 16, 4]
    assert image.instances[3:7, 2:6].tolist() == [[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert image.instances[12, 22] == 4
    assert image.instances[10, 20] == 0
    assert np.argwhere(image.unknown).min(axis=0).tolist() == [20, 30]
    assert np.count_nonzero(image.unknown) == 25
    assert (image.image_id, image.split_group, image.mpp) == ("lab-roi", "lab-roi", 0.25)
    anna = LabelOrigin("annotator", "anna")
    assert {label.origin for label in _read_qupath(tmp_path, origin=anna).labels} == {anna}


def test_the_smaller_of_two_overlapping_outlines_is_on_top(tmp_path: Path) -> None:
    features = [_feature(_square(12, 12, 3), "tumor"), _feature(_square(10, 10, 8), "lymphocyte")]
    for order in (features, features[::-1]):
        _write_qupath(tmp_path, order)
        image = _read_qupath(tmp_path)
        areas = dict(zip(_types(image), np.bincount(image.instances.ravel())[1:].tolist(), strict=True))
        assert areas == {("tumor",): 9, ("lymphocyte",): 55}


def test_compressed_geojson_and_lists_of_features_are_read(tmp_path: Path) -> None:
    _write_png(tmp_path / "roi.png", _noise(30, 40, 3))
    text = json.dumps([_feature(_square(2, 3, 4), "tumor")])
    (tmp_path / "roi.geojson.gz").write_bytes(gzip.compress(text.encode()))
    assert _read_qupath(tmp_path).num_cells == 1


@pytest.mark.parametrize(
    ("feature", "complaint"),
    [
        (_feature(_square(2, 3, 4), "mast cell"), r"feature 1 \(some-id\): 'mast cell' is not a class.*synonym"),
        (_feature({"type": "Point", "coordinates": [1, 2]}, "tumor"), "feature 1.*got Point.*outline"),
        (_feature({"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}, "tumor"), "feature 1.*form no polygon"),
        (_feature({"type": "Polygon", "coordinates": [[[0, 0], [1, "a"], [2, 0], [0, 0]]]}), "feature 1.*no polygon"),
        (_feature({"type": "Polygon", "coordinates": [[[0, 0], [1, 1e999], [2, 0], [0, 0]]]}), "feature 1.*no polygon"),
        (_feature(None, "tumor"), "feature 1.*got None"),
        (_feature(_square(2, 3, 4), 17), "feature 1.*must be a name, got 17"),
        ("no feature", "feature 1 is no GeoJSON feature"),
    ],
)
def test_a_broken_feature_is_named_with_its_file(tmp_path: Path, feature: Any, complaint: str) -> None:
    _write_qupath(tmp_path, [_feature(_square(2, 3, 4), "tumor"), feature])
    with pytest.raises(ValueError, match=rf"roi\.geojson, {complaint}"):
        _read_qupath(tmp_path)


def test_outlines_without_an_image_or_json_are_named(tmp_path: Path) -> None:
    _write_qupath(tmp_path, [])
    (tmp_path / "roi.geojson").write_text("{")
    with pytest.raises(ValueError, match=r"roi\.geojson is no GeoJSON"):
        _read_qupath(tmp_path)
    (tmp_path / "roi.png").unlink()
    with pytest.raises(ValueError, match=r"roi\.geojson has no image roi"):
        _read_qupath(tmp_path)


@given(st.integers(0, 2**32 - 1))
def test_outlines_traced_through_pixel_centres_give_the_pixels_back(seed: int) -> None:
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(30, 40)).astype(np.float32), (0, 0), 2.0)
    mask = (noise > 0.1).astype(np.uint8)
    _, components = cv2.connectedComponents(mask, connectivity=4)
    mask = (components == components.max()).astype(np.uint8)
    outline = max(cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0], key=len)[:, 0]
    if len(outline) < 4 or not (polygon := Polygon(outline)).is_valid:
        return
    filled = cv2.fillPoly(np.zeros_like(mask), [outline], 1)
    painted = paint_polygons([polygon], (30, 40), where="here", vertices="centres")
    np.testing.assert_array_equal(painted, filled)


def test_pumas_region_is_read_whole(shared_data: Path) -> None:
    (image,) = read_puma(shared_data / "nuclei" / "puma_tile")
    names = [name for (name,) in _types(image)]
    counts = {name: names.count(name) for name in sorted(set(names))}
    assert counts == {
        "apoptosis": 3, "endothelium": 1, "histiocyte": 10, "lymphocyte": 475, "plasma cell": 2, "tumor": 180,
    }  # fmt: skip
    assert (image.mpp, image.tissue) == (0.226, "melanoma")


# --------------------------------------------------------------------------------------------------------- synthetic


def test_synthetic_images_are_the_generators_own() -> None:
    (image,) = render_images([7], side_px=64)
    corner = int(np.random.default_rng(7).integers(0, 4000))
    region = render_region(7, Box(corner, corner, corner + 64, corner + 64))
    np.testing.assert_array_equal(image.image, region.image)
    np.testing.assert_array_equal(image.instances, region.labels)
    names = get_ontology("refined7").names
    assert _types(image) == [(names[kind],) for kind in region.types]
