"""MoNuSAC as published, and its patches as the paper makes them: content worked out by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from dataset_helpers import OF_DATASET, square_image
from hypothesis import given
from hypothesis import strategies as st

from cellmill_training.datasets.labelled_image import CellLabel, LabelledImage
from cellmill_training.datasets.patching import patches_of
from cellmill_training.datasets.readers.monusac import read_monusac, read_monusac_images

PALE = 235


def _annotation(name: str, *regions: list[tuple[float, float]]) -> str:
    drawn = "".join(
        f'<Region Id="{number}"><Vertices>'
        + "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in region)
        + "</Vertices></Region>"
        for number, region in enumerate(regions, start=1)
    )
    return f'<Annotation Id="1"><Attributes><Attribute Name="{name}" Id="0" Value=""/></Attributes><Regions>{drawn}</Regions></Annotation>'  # noqa: E501


def _square(x: float, y: float, side: float) -> list[tuple[float, float]]:
    return [(x, y), (x + side, y), (x + side, y + side), (x, y + side)]


def _write(
    folder: Path, *annotations: str, size: tuple[int, int] = (60, 80), name: str = "TCGA-AA-0001-01Z-00-DX1_1"
) -> Path:
    place = folder / name[:23]
    place.mkdir(parents=True, exist_ok=True)
    pixels = np.full((*size, 3), PALE, np.uint8)
    pixels[40:50, 60:70] = (70, 40, 120)  # dark, and nobody says what it is
    tifffile.imwrite(place / f"{name}.tif", pixels)
    path = place / f"{name}.xml"
    path.write_text(f'<Annotations MicronsPerPixel="0.252">{"".join(annotations)}</Annotations>')
    return path


def test_regions_become_nuclei_of_their_annotations_class(tmp_path: Path) -> None:
    _write(
        tmp_path,
        _annotation("Epithelial", _square(10, 20, 4), [(30, 30), (30, 30)]),  # the second is a click
        _annotation("Lymphocytes", _square(-3, -3, 5), _square(40, 5, 6)),  # the first is cut by the border
        _annotation("Macrophage", [(50, 20), (56, 26), (56, 20), (50, 26)]),  # crosses itself
        _annotation("Ambiguous", _square(20, 50, 3)),
        _annotation("Neutrophil", _square(42, 7, 2)),  # inside a lymphocyte
        "<Annotation><Regions/></Annotation>",
    )
    (image,) = read_monusac_images(tmp_path)
    types = [label.cell_types for label in image.labels]
    assert types == [("epithelial",), ("lymphocyte",), ("lymphocyte",), ("macrophage",), ("neutrophil",)]
    assert np.bincount(image.instances.ravel())[1:].tolist() == [16, 4, 32, 12, 4]
    assert image.instances[20:24, 10:14].min() == 1
    assert image.instances[7, 42] == 5
    assert image.unknown[50:53, 20:23].all()
    assert image.unknown[40:50, 60:70].all()
    elsewhere = image.unknown.copy()
    elsewhere[50:53, 20:23] = elsewhere[36:54, 56:74] = False
    assert not elsewhere.any()
    assert (image.mpp, image.split_group) == (0.252, "monusac-TCGA-AA-0001")
    (plain,) = read_monusac_images(tmp_path, dark_is_unknown=False)
    assert np.count_nonzero(plain.unknown) == 9


def test_a_negative_region_is_a_hole(tmp_path: Path) -> None:
    path = _write(tmp_path, _annotation("Epithelial", _square(10, 20, 6), _square(12, 22, 2)))
    path.write_text(path.read_text().replace('<Region Id="2"', '<Region Id="2" NegativeROA="1"'))
    (image,) = read_monusac_images(tmp_path)
    assert image.num_cells == 1
    assert np.count_nonzero(image.instances) == 36 - 4


def test_every_image_of_a_patient_is_in_its_group(tmp_path: Path) -> None:
    for number in (1, 2):
        _write(tmp_path, name=f"TCGA-AA-0001-01Z-00-DX1_{number}")
    _write(tmp_path, name="TCGA-AA-0002-01Z-00-DX1_1")
    groups = [image.split_group for image in read_monusac_images(tmp_path)]
    assert groups == ["monusac-TCGA-AA-0001", "monusac-TCGA-AA-0001", "monusac-TCGA-AA-0002"]


def test_what_is_wrong_is_named_with_file_and_region(tmp_path: Path) -> None:
    path = _write(tmp_path, _annotation("Epithelial", _square(10, 20, 4)))
    good = path.read_text()
    entity = '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
    for text, complaint in (
        (
            good.replace("Epithelial", "Mast cell"),
            r"annotation 0: its Attribute Name.*epithelial.*Mast cell",
        ),
        (
            good.replace('X="14.0"', 'X="?"').replace('X="14"', 'X="?"'),
            r"annotation 0 \(epithelial\), region 1: a vertex",
        ),
        (good.replace('Y="24"', 'Y="inf"'), r"region 1: a vertex is not finite"),
        (good[:100], "is no XML"),
        (entity + good.replace("0.252", "&e;"), "is no XML"),
        ("<a/>", "must hold Aperio's Annotations, got a"),
        (good.replace("0.252", "40x"), "MicronsPerPixel must be a number, got '40x'"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"_1\.xml.*{complaint}"):
            list(read_monusac_images(tmp_path))
    path.write_text(good)
    image = path.with_suffix(".tif")
    image.write_bytes(image.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"_1\.tif cannot be read"):
        list(read_monusac_images(tmp_path))
    image.unlink()
    with pytest.raises(ValueError, match=r"_1\.xml has no image beside it"):
        list(read_monusac_images(tmp_path))


def test_the_reader_makes_patches(tmp_path: Path) -> None:
    _write(tmp_path, _annotation("Epithelial", _square(250, 20, 12)), size=(130, 300))
    one, two = read_monusac(tmp_path)
    assert (one.image_id, two.image_id) == tuple(f"monusac-TCGA-AA-0001-01Z-00-DX1_1-r0c{c}" for c in (0, 1))
    assert (one.num_cells, two.num_cells) == (1, 2)  # cut in two, and mirrored whole in the second patch
    assert one.image.shape == (256, 256, 3)


# ----------------------------------------------------------------------------------------------------------- patches


def _image(height: int, width: int, *boxes: tuple[int, int, int, int]) -> LabelledImage:
    """Pixels that tell where they are: red counts rows, green columns (both modulo 251)."""
    rows, columns = np.indices((height, width))
    pixels = np.stack([rows % 251, columns % 251, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    instances = np.zeros((height, width), np.int32)
    for number, (y0, y1, x0, x1) in enumerate(boxes, start=1):
        instances[y0:y1, x0:x1] = number
    return replace(
        square_image("i"),
        image=pixels,
        instances=instances,
        labels=tuple(CellLabel((name,), OF_DATASET) for name in ("dead", "neutrophil", "connective")[: len(boxes)]),
        unknown=rows > height - 3,
    )


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ((127, 500), 0),
        ((500, 127), 0),
        ((128, 128), 1),
        ((256, 256), 1),
        ((257, 256), 2),
        ((300, 600), 6),
        ((200, 300), 2),
    ],
)
def test_how_many_patches_an_image_gives(size: tuple[int, int], count: int) -> None:
    patches = list(patches_of(_image(*size)))
    assert len(patches) == count
    assert all(patch.image.shape == (256, 256, 3) for patch in patches)


def test_a_long_side_is_cut_and_its_rest_mirrored() -> None:
    image = _image(300, 600)
    patches = {patch.image_id: patch for patch in patches_of(image)}
    assert sorted(patches) == [f"i-r{y}c{x}" for y in (0, 1) for x in (0, 1, 2)]
    np.testing.assert_array_equal(patches["i-r0c1"].image, image.image[:256, 256:512])
    corner = patches["i-r1c2"]
    np.testing.assert_array_equal(corner.image[:44, :88], image.image[256:, 512:])
    # Column 600 is the mirror image of column 598, row 300 of row 298.
    assert corner.image[44, 88].tolist() == [298 % 251, 598 % 251, 0]
    assert corner.image[255, 255].tolist() == [(598 - 511) % 251, (1198 - 767) % 251, 0]
    assert corner.mpp == image.mpp
    np.testing.assert_array_equal(np.flatnonzero(corner.unknown[:, 0]), [42, 43, 44])


def test_a_rest_thinner_than_its_mirror_image_is_mirrored_from_the_whole_image() -> None:
    *_, last = patches_of(_image(256, 257))
    assert last.image[0, :4, 1].tolist() == [256 % 251, 255 % 251, 254 % 251, 253 % 251]


def test_mirrored_nuclei_are_nuclei_of_their_own() -> None:
    image = _image(256, 300, (10, 20, 290, 296), (30, 40, 297, 300), (50, 60, 250, 262))
    one, two = patches_of(image)
    assert [label.cell_types for label in one.labels] == [("connective",)]
    # The first nucleus and its mirror image; the second meets its own at the border; a piece of the third, and all
    # of its mirror image.
    kinds = [label.cell_types[0] for label in two.labels]
    assert sorted(kinds) == ["connective", "connective", "dead", "dead", "neutrophil"]
    areas = dict.fromkeys(kinds, 0)
    for kind, area in zip(kinds, np.bincount(two.instances.ravel())[1:].tolist(), strict=True):
        areas[kind] += area
    assert areas == {"connective": 180, "dead": 120, "neutrophil": 50}


def test_a_short_side_is_enlarged() -> None:
    image = _image(128, 256, (0, 64, 0, 128))
    (patch,) = patches_of(image)
    assert np.count_nonzero(patch.instances) == 128 * 128
    assert patch.instances[127, 127] == 1
    assert patch.instances[128, 0] == 0
    assert patch.mpp == pytest.approx(image.mpp / np.sqrt(2))


@given(st.integers(128, 700), st.integers(128, 700))
def test_cut_and_joined_again_is_the_image(height: int, width: int) -> None:
    image = _image(height, width)
    if min(height, width) < 256:
        return
    whole = np.zeros((-(-height // 256) * 256, -(-width // 256) * 256, 3), np.uint8)
    for patch in patches_of(image):
        y, x = (int(part) for part in patch.image_id.removeprefix("i-r").split("c"))
        whole[256 * y : 256 * y + 256, 256 * x : 256 * x + 256] = patch.image
    np.testing.assert_array_equal(whole[:height, :width], image.image)
