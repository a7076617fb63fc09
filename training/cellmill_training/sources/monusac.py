"""MoNuSAC 2020: real H&E of several organs with four types. CC BY-NC-SA 4.0 (Verma et al. 2021).

Scale: 40x by the source's word, taken as 0.25 um/px. What is here are connected components, not the original polygons:
touching nuclei of one class are merged, so components are split where their distance transform has several summits, and
the flows of pieces that stay far from convex are not trained on. "Epithelial" covers neoplastic and epithelial.
Macrophage outlines are whole cells: inside one, a pixel is macrophage or background, and no flow is known. Other types
(stroma above all) are unlabelled, so a dark unlabelled pixel away from labelled nuclei may be background, connective or
dead; only pale pixels and the rim around labelled nuclei are surely background.
"""

import csv
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from cellmill_training.datasets.readers.files import read_labels, read_rgb
from cellmill_training.datasets.unlabelled import surely_background
from cellmill_training.samples import BACKGROUND_BIT, Labels, TissueSample, bits_of, make_sample
from cellmill_training.splits import split_groups

__all__ = ["MONUSAC_MPP", "read_monusac", "split_touching"]

MONUSAC_MPP = 0.25
_CLASS_NAMES = {1: ("neoplastic", "epithelial"), 2: ("lymphocyte",), 3: ("macrophage",), 4: ("neutrophil",)}
_MACROPHAGE = 3
_MIN_SOLIDITY = 0.88


def read_monusac(folder: Path) -> list[TissueSample]:
    """All images of `folder` (images/, labels/, manifest.csv), each with its split."""
    with (folder / "manifest.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    splits = split_groups([r["slide"] for r in rows], num_test=4, num_validation=2)
    samples: list[TissueSample] = []
    for row in rows:
        name = row["image"]
        image = read_rgb(folder / "images" / f"{name}.jpg")
        components = read_labels(folder / "labels" / f"{name}_inst.png")
        classes = read_labels(folder / "labels" / f"{name}_class.png")
        samples.append(
            make_sample(
                image,
                _labels(image, components, classes),
                mpp=MONUSAC_MPP,
                name=name,
                source="monusac",
                group=row["slide"],
                split=splits[row["slide"]],
            )
        )
    return samples


def _labels(image: npt.NDArray[np.uint8], components: npt.NDArray[np.int32], classes: npt.NDArray[np.int32]) -> Labels:
    instances, convex = split_touching(components)
    inside = instances > 0
    allowed = np.where(surely_background(image, inside), BACKGROUND_BIT, _unlabelled()).astype(np.uint16)
    for value, names in _CLASS_NAMES.items():
        extra = int(BACKGROUND_BIT) if value == _MACROPHAGE else 0
        allowed[inside & (classes == value)] = bits_of(names) | extra
    return Labels(instances=instances, allowed=allowed, flow_known=inside & convex & (classes != _MACROPHAGE))


def _unlabelled() -> int:
    return int(BACKGROUND_BIT) | bits_of(["connective", "dead"])


def split_touching(
    components: npt.NDArray[np.int32],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """Split components with several summits of their distance transform.

    Returns:
        Instances (H, W), and where the instance is convex enough for its outline to be believed.
    """
    instances = np.zeros_like(components)
    convex = np.zeros(components.shape, np.bool_)
    boxes = _boxes(components)
    count = 0
    for label, (y0, y1, x0, x1) in boxes.items():
        mask = np.pad(components[y0:y1, x0:x1] == label, 1)
        pieces = _pieces(mask)
        for piece in range(1, int(pieces.max()) + 1):
            here = (pieces == piece)[1:-1, 1:-1]
            if not here.any():
                continue
            count += 1
            instances[y0:y1, x0:x1][here] = count
            convex[y0:y1, x0:x1][here] = _solidity(here) >= _MIN_SOLIDITY
    return instances, convex


def _boxes(labels: npt.NDArray[np.int32]) -> dict[int, tuple[int, int, int, int]]:
    rows, columns = np.nonzero(labels)
    values = labels[rows, columns]
    order = np.argsort(values, kind="stable")
    found, starts = np.unique(values[order], return_index=True)
    boxes: dict[int, tuple[int, int, int, int]] = {}
    for label, y, x in zip(found, np.split(rows[order], starts[1:]), np.split(columns[order], starts[1:]), strict=True):
        boxes[int(label)] = (int(y.min()), int(y.max()) + 1, int(x.min()), int(x.max()) + 1)
    return boxes


def _solidity(mask: npt.NDArray[np.bool_]) -> float:
    points = np.argwhere(mask)[:, ::-1].astype(np.int32)  # (n, 2) as x, y
    hull = cv2.convexHull(points)
    # The hull runs through pixel centres; its border adds half a pixel all around.
    area = cv2.contourArea(hull) + cv2.arcLength(hull, closed=True) / 2.0 + 1.0
    return float(mask.sum() / area)


def _pieces(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """One component, parted between the summits of its smoothed distance transform."""
    single = mask.astype(np.int32)
    if _solidity(mask) > 0.93:
        return single
    inner = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5).astype(np.float32)
    distance = cv2.GaussianBlur(inner, (0, 0), 1.5).astype(np.float32)
    reach = max(3, round(0.75 * float(distance.max())))
    summit = cv2.dilate(distance, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1)))
    peaks = (distance >= summit - 1e-4) & (distance > max(2.5, 0.4 * float(distance.max()))) & mask
    num_seeds, _, _, centers = cv2.connectedComponentsWithStats(peaks.astype(np.uint8))
    if num_seeds <= 2:
        return single
    return _power_cells(mask, inner, centers[1:].astype(np.float64))


def _power_cells(
    mask: npt.NDArray[np.bool_], inner: npt.NDArray[np.floating], centers_xy: npt.NDArray[np.float64]
) -> npt.NDArray[np.int32]:
    """Each pixel to the summit with the least d^2 - r^2, r the summit's own radius: two discs part at their waist."""
    ys, xs = np.nonzero(mask)
    columns, rows = np.round(centers_xy).astype(np.int64).T
    radii = inner[rows, columns].astype(np.float64)
    squared = (ys[:, None] - centers_xy[:, 1]) ** 2 + (xs[:, None] - centers_xy[:, 0]) ** 2  # (pixels, summits)
    pieces = np.zeros(mask.shape, np.int32)
    pieces[ys, xs] = 1 + np.argmin(squared - radii**2, axis=1)
    return pieces
