"""Made-up nuclei and the maps an imperfect network would draw of them: for tests and benchmarks.

Consumes a size and a seed; produces a label image of crowded ellipses and the dense maps of it, blurred and noisy as a
network's are. Deterministic by seed.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from cellmill.instances.maps import DenseMaps, HvMaps, quantise_flow, quantise_hv, quantise_prob
from cellmill.instances.targets import masks_to_flows, masks_to_hv

__all__ = ["MapNoise", "crowded_nuclei", "draw_hv_maps", "draw_maps", "matched_fraction"]


@dataclass(frozen=True)
class MapNoise:
    """How far the maps are from the truth."""

    blur_px: float = 1.0
    """Sigma of the blur of flows and probabilities: networks round corners."""
    flow: float = 0.15
    """Standard deviation of the flow's error, a unit flow being 1."""
    hv: float = 0.15
    """Standard deviation of the error of horizontal and vertical distances, which reach from -1 to 1."""
    logit: float = 1.0
    """Standard deviation of the foreground logit's error."""
    grain_px: float = 1.5
    """Sigma of the error's correlation in space."""


def crowded_nuclei(
    height: int, width: int, *, num_nuclei: int, seed: int, radius_px: tuple[float, float] = (7.5, 13.0)
) -> npt.NDArray[np.int32]:
    """Labels (H, W) of at most `num_nuclei` ellipses; half of them lie in crowds where they touch."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.int32)
    depth = np.full((height, width), np.inf, np.float32)  # of the ellipse that holds the pixel: 0 centre, 1 rim
    crowds = rng.uniform((0, 0), (height, width), (max(1, num_nuclei // 40), 2))
    for label in range(1, num_nuclei + 1):
        for _ in range(20):  # a place whose centre is not inside another nucleus
            if rng.random() < 0.5:
                center = crowds[rng.integers(len(crowds))] + rng.normal(0, 45, 2)
            else:
                center = rng.uniform((0, 0), (height, width))
            y, x = int(center[0]), int(center[1])
            if 0 <= y < height and 0 <= x < width and depth[y, x] > 1.7:
                _draw_ellipse(
                    labels,
                    depth,
                    label=label,
                    rng=rng,
                    center=(float(center[0]), float(center[1])),
                    radius_px=radius_px,
                )
                break
    return labels


def _draw_ellipse(
    labels: npt.NDArray[np.int32],
    depth: npt.NDArray[np.float32],
    *,
    label: int,
    rng: np.random.Generator,
    center: tuple[float, float],
    radius_px: tuple[float, float],
) -> None:
    height, width = labels.shape
    major = rng.uniform(*radius_px)
    minor = major * rng.uniform(0.65, 1.0)
    angle = rng.uniform(0, np.pi)
    reach = int(major * 1.5) + 2
    y0, y1 = max(0, int(center[0]) - reach), min(height, int(center[0]) + reach + 1)
    x0, x1 = max(0, int(center[1]) - reach), min(width, int(center[1]) + reach + 1)
    ys, xs = np.mgrid[y0:y1, x0:x1]
    dy, dx = ys - center[0], xs - center[1]
    along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    own = np.sqrt((along / major) ** 2 + (across / minor) ** 2).astype(np.float32)
    there = depth[y0:y1, x0:x1]
    labels[y0:y1, x0:x1] = np.where((own <= 1) & (own < there), label, labels[y0:y1, x0:x1])
    np.minimum(there, own, out=there)


def draw_maps(
    labels: npt.NDArray[np.int32],
    *,
    num_classes: int,
    seed: int,
    noise: MapNoise | None = None,
    origin_px: tuple[int, int] = (0, 0),
) -> DenseMaps:
    """Maps of the nuclei in `labels`; nucleus k is of class `k % num_classes`. Without noise they are the truth."""
    rng = np.random.default_rng(seed)
    flow = masks_to_flows(labels)
    if noise is not None:
        flow = _disturbed(flow, rng, noise, deviation=noise.flow)
    prob = _draw_prob(labels, rng, noise, num_classes=num_classes)
    return DenseMaps(flow=quantise_flow(flow), prob=prob, origin_px=origin_px)


def draw_hv_maps(
    labels: npt.NDArray[np.int32],
    *,
    num_classes: int,
    seed: int,
    noise: MapNoise | None = None,
    origin_px: tuple[int, int] = (0, 0),
) -> HvMaps:
    """As `draw_maps`, with horizontal and vertical distances; at the same seed the foreground is the same."""
    rng = np.random.default_rng(seed)
    hv = masks_to_hv(labels)
    if noise is not None:
        hv = _disturbed(hv, rng, noise, deviation=noise.hv)
    prob = _draw_prob(labels, rng, noise, num_classes=num_classes)
    return HvMaps(hv=quantise_hv(hv), prob=prob, origin_px=origin_px)


def _disturbed(
    channels: npt.NDArray[np.float32], rng: np.random.Generator, noise: MapNoise, *, deviation: float
) -> npt.NDArray[np.float32]:
    blurred = np.stack([_blurred(channel, noise.blur_px) for channel in channels])
    error = np.stack([_grain(channel.shape, rng, noise.grain_px) for channel in channels])
    return (blurred + deviation * error).astype(np.float32, copy=False)


def _draw_prob(
    labels: npt.NDArray[np.int32], rng: np.random.Generator, noise: MapNoise | None, *, num_classes: int
) -> npt.NDArray[np.uint8]:
    """Probabilities (C + 1, H, W), background first."""
    foreground = (labels > 0).astype(np.float32)
    if noise is not None:
        soft = np.clip(_blurred(foreground, noise.blur_px), 1e-3, 1 - 1e-3)
        logit = 2 * np.log(soft / (1 - soft)) + noise.logit * _grain(labels.shape, rng, noise.grain_px)
        foreground = 1 / (1 + np.exp(-logit))
    prob = np.empty((num_classes + 1, *labels.shape), np.uint8)
    prob[0] = quantise_prob(1 - foreground)
    shares = 0.8 if num_classes > 1 else 1.0
    for index in range(num_classes):
        share = np.where(labels % num_classes == index, shares, (1 - shares) / max(1, num_classes - 1))
        prob[index + 1] = quantise_prob(foreground * share)
    return prob


def _blurred(channel: npt.NDArray[np.float32], sigma_px: float) -> npt.NDArray[np.float32]:
    return np.asarray(cv2.GaussianBlur(channel, (0, 0), sigma_px), np.float32) if sigma_px > 0 else channel


def _grain(shape: tuple[int, ...], rng: np.random.Generator, sigma_px: float) -> npt.NDArray[np.float32]:
    """Noise of standard deviation 1, correlated over `sigma_px`."""
    noise = _blurred(rng.standard_normal(shape, np.float32), sigma_px)
    return noise / max(float(noise.std()), 1e-6)


def matched_fraction(
    predicted: npt.NDArray[np.integer], reference: npt.NDArray[np.integer], *, iou_min: float
) -> float:
    """Share of the cells of both label images that have a partner in the other at `iou_min` (above 0.5) or more."""
    num_predicted, num_reference = int(predicted.max(initial=0)), int(reference.max(initial=0))
    both = (predicted > 0) & (reference > 0)
    pairs = predicted[both].astype(np.int64) * (num_reference + 1) + reference[both]
    codes, common = np.unique(pairs, return_counts=True)
    area_predicted = np.bincount(predicted.ravel(), minlength=num_predicted + 1)
    area_reference = np.bincount(reference.ravel(), minlength=num_reference + 1)
    first, second = codes // (num_reference + 1), codes % (num_reference + 1)
    iou = common / (area_predicted[first] + area_reference[second] - common)
    total = int((area_predicted[1:] > 0).sum() + (area_reference[1:] > 0).sum())
    return 2 * int((iou >= iou_min).sum()) / total if total else 1.0
