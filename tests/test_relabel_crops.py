"""Claims about crops: exact against a slow plain version, mirrored at borders, the same context at every scale."""

import numpy as np
import numpy.typing as npt
import pytest

from cellmill_training.relabel.crops import CropConfig, cell_boxes, cell_crops


def _mirrored(index: int, size: int) -> int:
    """Where a position outside 0..size-1 is read, the border pixel not repeated."""
    while not 0 <= index < size:
        index = -index if index < 0 else 2 * (size - 1) - index
    return index


def _keys(distance: float) -> float:
    """Keys' cubic kernel with a = -0.75, OpenCV's."""
    a, d = -0.75, abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def _cut(image: npt.NDArray[np.uint8], box: list[int], margin: int) -> npt.NDArray[np.float64]:
    height, width = image.shape[:2]
    x0, y0, x1, y1 = box
    return np.array(
        [
            [image[_mirrored(y, height), _mirrored(x, width)] for x in range(x0 - margin, x1 + margin)]
            for y in range(y0 - margin, y1 + margin)
        ],
        np.float64,
    )


def _weights(source: int, target: int) -> npt.NDArray[np.float64]:
    """(target, source): what each output pixel takes of each input pixel, the crop's own border repeated."""
    weights = np.zeros((target, source))
    for i in range(target):
        center = (i + 0.5) * source / target - 0.5
        for tap in range(int(np.floor(center)) - 1, int(np.floor(center)) + 3):
            weights[i, min(max(tap, 0), source - 1)] += _keys(center - tap)
    return weights


def _plain_crop(image: npt.NDArray[np.uint8], box: list[int], margin: int, side: int) -> npt.NDArray[np.float64]:
    cut = _cut(image, box, margin)
    rows, columns = _weights(cut.shape[0], side), _weights(cut.shape[1], side)
    return np.clip(np.einsum("ih,hwc,jw->ijc", rows, cut, columns), 0, 255)


def test_crops_equal_a_slow_plain_version_inside_and_at_borders() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (70, 90, 3), np.uint8)
    boxes = np.array([[30, 25, 50, 44], [0, 0, 7, 9], [80, 60, 90, 70], [0, 30, 90, 33], [89, 0, 90, 1]])
    crops = cell_crops(image, boxes, mpp=0.25, config=CropConfig())
    assert crops.shape == (5, 64, 64, 3)
    for crop, box in zip(crops, boxes.tolist(), strict=True):
        # OpenCV rounds its weights to 1/2048: one grey level, two where four of them add up.
        assert np.abs(crop - _plain_crop(image, box, 15, 64)).max() <= 2.0


def test_an_image_smaller_than_the_context_is_mirrored_more_than_once() -> None:
    image = np.random.default_rng(1).integers(0, 256, (6, 9, 3), np.uint8)
    crop = cell_crops(image, np.array([[2, 1, 5, 4]]), mpp=0.25, config=CropConfig())[0]
    assert np.abs(crop - _plain_crop(image, [2, 1, 5, 4], 15, 64)).max() <= 2.0


def test_a_crop_of_64_px_is_the_pixels_themselves() -> None:
    image = np.random.default_rng(2).integers(0, 256, (100, 100, 3), np.uint8)
    crop = cell_crops(image, np.array([[30, 20, 64, 54]]), mpp=0.25, config=CropConfig())[0]
    assert np.array_equal(crop, image[5:69, 15:79])


@pytest.mark.parametrize(("mpp", "margin_px"), [(0.25, 15), (0.5, 8), (0.125, 30), (0.2268, 17)])
def test_context_is_the_same_length_at_every_scale(mpp: float, margin_px: int) -> None:
    assert CropConfig().margin_px(mpp) == margin_px


def test_boxes_are_those_of_a_plain_search() -> None:
    rng = np.random.default_rng(3)
    instances = np.zeros((40, 50), np.int32)
    for number in range(1, 8):
        y, x = rng.integers(0, 30, 2)
        instances[y : y + rng.integers(2, 9), x : x + rng.integers(2, 9)] = number
    present = np.unique(instances[instances > 0])
    instances = np.searchsorted(np.concatenate([[0], present]), instances).astype(np.int32)
    for number, box in enumerate(cell_boxes(instances).tolist(), start=1):
        ys, xs = np.nonzero(instances == number)
        assert box == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_a_gap_in_the_numbers_is_named() -> None:
    with pytest.raises(ValueError, match="number 2 has no pixel"):
        cell_boxes(np.array([[1, 0, 3]], np.int32))


def test_an_image_without_cells_has_no_crops() -> None:
    boxes = cell_boxes(np.zeros((10, 10), np.int32))
    assert cell_crops(np.zeros((10, 10, 3), np.uint8), boxes, mpp=0.25, config=CropConfig()).shape == (0, 64, 64, 3)
