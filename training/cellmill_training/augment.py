"""Crops for training: random similarity transforms, stains and blemishes.

Consumes a `TissueSample`, produces a `Crop` on the model grid. Geometry is limited to turns, mirrors and one scale for
both axes, because those carry unit flows over exactly (a vector turns with the image), so flows are computed once per
image and not once per crop. Colour is varied in optical density: a change of stain vectors and of stain amounts is one
3 x 3 matrix there, so strong variation costs next to nothing.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from cellmill.instances.stain import EOSIN_RGB, HEMATOXYLIN_RGB
from cellmill_training.samples import TissueSample

__all__ = [
    "AugmentConfig",
    "Crop",
    "blemished",
    "geometric_crop",
    "nuclei_shaded",
    "od_of",
    "pink_tissue",
    "reappeared",
    "restained",
    "rgb_of",
]

FloatImage = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Crop:
    """One training crop on the model grid."""

    image: npt.NDArray[np.uint8]  # (S, S, 3)
    allowed: npt.NDArray[np.uint16]  # (S, S)
    flow: FloatImage  # (2, S, S), dy then dx
    flow_known: npt.NDArray[np.bool_]  # (S, S)
    instances: npt.NDArray[np.int32]  # (S, S)


@dataclass(frozen=True)
class AugmentConfig:
    """How strongly crops are varied."""

    crop_px: int = 192
    """Side of a crop on the model grid."""
    target_mpp: float = 0.5
    """Scale of the model grid."""
    scale_range: tuple[float, float] = (0.7, 1.4)
    """Nuclei are shown at these factors of their true size; log-uniform around 1."""
    stain_angle: float = 0.10
    """Standard deviation of each component of the stain vectors."""
    stain_amount: float = 0.28
    """Standard deviation of the logarithm of each stain's amount."""
    pink_probability: float = 0.65
    """How often a hematoxylin-only image is carried onto pink tissue."""


_TABLE = -np.log((np.arange(256, dtype=np.float32) + 1.0) / 256.0)
_HEMATOXYLIN = np.array(HEMATOXYLIN_RGB, np.float32)
_EOSIN = np.array(EOSIN_RGB, np.float32)


def od_of(image: npt.NDArray[np.uint8]) -> FloatImage:
    """Optical density (H, W, 3) of 8-bit RGB."""
    return _TABLE[image]


def rgb_of(density: FloatImage) -> npt.NDArray[np.uint8]:
    """8-bit RGB of optical density; negative densities (brighter than the lamp) become white."""
    return np.clip(np.exp(-density) * 256.0 - 1.0, 0.0, 255.0).astype(np.uint8)


def geometric_crop(
    sample: TissueSample, *, center_xy: tuple[float, float], config: AugmentConfig, rng: np.random.Generator
) -> Crop:
    """A turned, mirrored and scaled crop around a point of the sample."""
    low, high = np.log(config.scale_range)
    shown = float(np.exp(np.clip(rng.normal(0.0, (high - low) / 4), low, high)))
    step = config.target_mpp / shown / sample.mpp  # source px per crop px
    turn, mirror = rng.uniform(0.0, 2.0 * np.pi), rng.choice([-1.0, 1.0])
    cosine, sine = np.cos(turn), np.sin(turn)
    orthogonal = np.array([[cosine * mirror, -sine], [sine * mirror, cosine]])  # crop axes in the source, as x, y
    side = config.crop_px
    image = _warped_image(sample.image, orthogonal * step, center_xy, side, smooth=bool(rng.random() < 0.75))

    nearest = _matrix(orthogonal * step, center_xy, side)
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    inner = cv2.warpAffine(np.ones(sample.image.shape[:2], np.uint8), nearest, (side, side), flags=flags) > 0
    stacked = np.dstack(
        [sample.instances.astype(np.float32), sample.allowed.astype(np.float32), sample.flow_known.astype(np.float32)]
    )
    labels = cv2.warpAffine(stacked, nearest, (side, side), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    source_flow = cv2.warpAffine(sample.flow, nearest, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    # (dy, dx) in the source to (dy, dx) in the crop: the transpose of an orthogonal matrix is its inverse.
    dx = orthogonal[0, 0] * source_flow[..., 1] + orthogonal[1, 0] * source_flow[..., 0]
    dy = orthogonal[0, 1] * source_flow[..., 1] + orthogonal[1, 1] * source_flow[..., 0]
    length = np.sqrt(dx * dx + dy * dy) + 1e-6
    return Crop(
        image=image,
        allowed=labels[..., 1].astype(np.uint16),
        flow=np.stack([dy / length, dx / length]).astype(np.float32),
        flow_known=(labels[..., 2] > 0) & inner & (length > 0.3),
        instances=labels[..., 0].astype(np.int32),
    )


def _matrix(linear: npt.NDArray[np.float64], center_xy: tuple[float, float], side: int) -> npt.NDArray[np.float64]:
    offset = np.array(center_xy) - linear @ np.full(2, (side - 1) / 2)
    return np.column_stack([linear, offset])


def _warped_image(
    image: npt.NDArray[np.uint8],
    linear: npt.NDArray[np.float64],
    center_xy: tuple[float, float],
    side: int,
    *,
    smooth: bool,
) -> npt.NDArray[np.uint8]:
    """Pixels of a crop; `smooth` samples twice as finely and averages, otherwise it is as sharp as bilinear gets."""
    factor = 2 if smooth else 1
    matrix = _matrix(linear / factor, center_xy, side * factor)
    warped = cv2.warpAffine(
        image,
        matrix,
        (side * factor, side * factor),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return (cv2.resize(warped, (side, side), interpolation=cv2.INTER_AREA) if smooth else warped).astype(np.uint8)


def _stain_vectors(spread: float, rng: np.random.Generator) -> FloatImage:
    """Two random stain vectors and their cross product as rows (3, 3), each of unit length."""
    rows = [
        np.abs(_HEMATOXYLIN + rng.normal(0.0, spread, 3).astype(np.float32)),
        np.abs(_EOSIN + rng.normal(0.0, spread, 3).astype(np.float32)),
    ]
    rows.append(np.cross(rows[0], rows[1]))
    return np.stack([row / (np.linalg.norm(row) + 1e-6) for row in rows]).astype(np.float32)


def restained(density: FloatImage, *, config: AugmentConfig, rng: np.random.Generator) -> FloatImage:
    """Optical density as another lab's dyes, timings and scanner might have made it."""
    unmix = np.linalg.inv(_stain_vectors(0.0, rng)).astype(np.float32)
    strength = rng.choice([0.4, 1.0, 1.6], p=[0.3, 0.5, 0.2])
    amounts = np.exp(rng.normal(0.0, config.stain_amount * strength, 3)).astype(np.float32)
    amounts[2] = min(amounts[2], 1.2)
    mixed = unmix @ np.diag(amounts) @ _stain_vectors(config.stain_angle * strength, rng)  # OD row vector @ mixed
    overall = float(np.exp(rng.normal(0.0, 0.12)))
    return cv2.transform(density, (mixed.T * overall).astype(np.float32)).astype(np.float32)


def pink_tissue(crop: Crop, texture: FloatImage, *, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """A hematoxylin-only image as H&E: its own nuclei, the eosin of another image behind and over them.

    Args:
        crop: of an image with one purple stain, its nuclei labelled.
        texture: (S, S) eosin amounts around 0..1, of real tissue without its nuclei.
        rng: source of the stain vectors and amounts.
    """
    density = od_of(crop.image).mean(axis=2)
    inside = crop.instances > 0
    rest = float(np.median(density[~inside])) if (~inside).any() else 0.1
    amount = np.clip(density - rest, 0.0, None)
    top = float(np.quantile(amount[inside], 0.8)) if inside.any() else 0.5
    amount = (amount / max(top, 0.05)).clip(0.0, 1.8).astype(np.float32)
    vectors = _stain_vectors(0.06, rng)
    covered = cv2.GaussianBlur(inside.astype(np.float32), (0, 0), 1.0)
    purple = amount * rng.uniform(0.5, 1.5) + rng.uniform(0.0, 0.12)
    pink = texture * rng.uniform(0.25, 1.0) * (1.0 - rng.uniform(0.2, 0.9) * covered) + rng.uniform(0.0, 0.1)
    return rgb_of((purple[..., None] * vectors[0] + pink[..., None] * vectors[1]).astype(np.float32))


def nuclei_shaded(crop: Crop, density: FloatImage, *, rng: np.random.Generator) -> FloatImage:
    """Every nucleus a little paler or darker than it was, so that darkness alone does not make a nucleus."""
    count = int(crop.instances.max(initial=0)) + 1
    factors = np.exp(rng.normal(-0.06, 0.25, count)).astype(np.float32).clip(0.4, 1.7)
    factors[0] = 1.0
    field = cv2.GaussianBlur(factors[crop.instances], (0, 0), 0.8)
    return density * field[..., None]


def reappeared(crop: Crop, *, config: AugmentConfig, rng: np.random.Generator) -> Crop:
    """The crop as another lab might have stained it and another camera seen it; its labels are untouched."""
    density = od_of(crop.image)
    if rng.random() < 0.9:
        density = restained(density, config=config, rng=rng)
    if rng.random() < 0.4 and crop.instances.any():
        density = nuclei_shaded(crop, density, rng=rng)
    return replace(crop, image=blemished(rgb_of(density), rng=rng))


def blemished(image: npt.NDArray[np.uint8], *, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Optics, sensor and file format: white balance, gamma, blur or sharpening, resampling, noise, JPEG."""
    values = image.astype(np.float32)
    if rng.random() < 0.5:
        values = 255.0 * (values / 255.0) ** float(np.exp(rng.normal(0.0, 0.18)))
    if rng.random() < 0.6:
        values = values * rng.normal(1.0, 0.04, 3).astype(np.float32) + rng.normal(0.0, 4.0)
    if rng.random() < 0.15:
        grey = values.mean(axis=2, keepdims=True)
        values = grey + (values - grey) * float(rng.uniform(0.4, 1.5))
    values = _refocused(np.ascontiguousarray(values, np.float32), rng)
    if rng.random() < 0.35:
        values = values + rng.normal(0.0, rng.uniform(1.0, 7.0), values.shape).astype(np.float32)
    pixels = np.clip(values, 0.0, 255.0).astype(np.uint8)
    if rng.random() < 0.4:
        quality = int(rng.integers(35, 92))
        pixels = _as_jpeg(pixels, quality)
    return np.ascontiguousarray(pixels)


def _as_jpeg(pixels: npt.NDArray[np.uint8], quality: int) -> npt.NDArray[np.uint8]:
    # Channels keep their RGB order; JPEG's luma weights then differ a little, which is variation too.
    encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded.astype(np.uint8)


def _refocused(values: FloatImage, rng: np.random.Generator) -> FloatImage:
    chance, side = rng.random(), values.shape[0]
    if chance < 0.25:
        return cv2.GaussianBlur(values, (0, 0), float(rng.uniform(0.4, 1.5))).astype(np.float32)
    if chance < 0.45:
        blurred = cv2.GaussianBlur(values, (0, 0), float(rng.uniform(0.7, 1.6)))
        return (values + float(rng.uniform(0.3, 1.3)) * (values - blurred)).astype(np.float32)
    if chance < 0.55:
        small = max(8, round(side * float(rng.uniform(0.45, 0.85))))
        shrunk = cv2.resize(values, (small, small), interpolation=cv2.INTER_AREA)
        return cv2.resize(shrunk, (side, side), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    return values
