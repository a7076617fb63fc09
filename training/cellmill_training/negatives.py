"""Crops without a nucleus: glass, pen, folds and plain eosin, and the eosin textures that they are made of.

What a network trained on tissue alone finds on glass, in pen strokes, in keratin flakes and in folded collagen is not
defined by its training; these crops define it.
"""

import cv2
import numpy as np
import numpy.typing as npt

from cellmill.instances.stain import EOSIN_RGB, HEMATOXYLIN_RGB
from cellmill_training.augment import Crop, od_of, rgb_of
from cellmill_training.samples import BACKGROUND_BIT, hematoxylin

__all__ = ["eosin_texture", "glass_crop", "plain_tissue_crop", "texture_crop"]

FloatImage = npt.NDArray[np.float32]


def eosin_texture(image: npt.NDArray[np.uint8]) -> FloatImage:
    """Eosin amounts (H, W), about 0..1, with the nuclei filled in from around them."""
    density = od_of(image)
    pink = np.clip(density[..., 1] - 0.6 * density[..., 0], 0.0, None)
    purple = hematoxylin(image)
    nuclei = cv2.dilate((purple > np.quantile(purple, 0.6)).astype(np.uint8), np.ones((5, 5), np.uint8))
    weight = 1.0 - nuclei.astype(np.float32)
    around = cv2.GaussianBlur(pink * weight, (0, 0), 9.0) / (cv2.GaussianBlur(weight, (0, 0), 9.0) + 0.02)
    filled = np.where(nuclei > 0, cv2.GaussianBlur(around, (0, 0), 1.0), pink)
    return (filled / max(float(np.quantile(filled, 0.95)), 0.05)).clip(0.0, 1.5).astype(np.float32)


def texture_crop(texture: FloatImage, side: int, *, rng: np.random.Generator) -> FloatImage:
    """A random square of a texture, turned by quarter turns, enlarged at times."""
    height, width = texture.shape
    span = min(height, width, round(side * float(rng.uniform(0.6, 1.6))))
    y, x = int(rng.integers(0, height - span + 1)), int(rng.integers(0, width - span + 1))
    part = cv2.resize(texture[y : y + span, x : x + span], (side, side), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(np.rot90(part, int(rng.integers(4)))[:, :: int(rng.choice([-1, 1]))], np.float32)


def _empty(image: npt.NDArray[np.uint8]) -> Crop:
    shape = image.shape[:2]
    return Crop(
        image=image,
        allowed=np.full(shape, BACKGROUND_BIT, np.uint16),
        flow=np.zeros((2, *shape), np.float32),
        flow_known=np.zeros(shape, np.bool_),
        instances=np.zeros(shape, np.int32),
    )


def _strokes(side: int, rng: np.random.Generator) -> FloatImage:
    canvas = np.zeros((side, side), np.float32)
    for _ in range(int(rng.integers(1, 4))):
        points = rng.integers(-side // 2, side + side // 2, (4, 1, 2)).astype(np.int32)
        cv2.polylines(canvas, [points], isClosed=False, color=1.0, thickness=int(rng.integers(3, 60)))
    return cv2.GaussianBlur(canvas, (0, 0), float(rng.uniform(1.0, 5.0))).astype(np.float32)


def _specks(side: int, rng: np.random.Generator) -> FloatImage:
    """Dust and debris: small irregular spots, neutral to brown, some as large as a nucleus but hard-edged."""
    canvas = np.zeros((side, side), np.float32)
    for _ in range(int(rng.integers(0, 12))):
        center = rng.integers(0, side, 2)
        points = (center + rng.normal(0.0, rng.uniform(0.7, 4.0), (5, 2))).astype(np.int32)
        cv2.fillPoly(canvas, [points.reshape(-1, 1, 2)], float(rng.uniform(0.2, 1.5)))
    return canvas


def glass_crop(side: int, *, rng: np.random.Generator) -> Crop:
    """Empty glass of some tint, with dust, shading and at times a pen stroke."""
    tint = np.abs(rng.normal(0.0, 0.05, 3)).astype(np.float32) + rng.uniform(0.0, 0.12)
    ramp = np.linspace(0.0, float(rng.uniform(0.0, 0.08)), side, dtype=np.float32)
    density = np.broadcast_to(tint, (side, side, 3)) + ramp[:, None, None]
    density = density + _specks(side, rng)[..., None] * rng.uniform(0.5, 1.0, 3).astype(np.float32)
    if rng.random() < 0.35:
        ink = rng.uniform(0.05, 1.6, 3).astype(np.float32)
        density = density + _strokes(side, rng)[..., None] * ink
    return _empty(rgb_of(density.astype(np.float32)))


def plain_tissue_crop(texture: FloatImage, *, rng: np.random.Generator) -> Crop:
    """Eosin without nuclei: collagen, keratin, mucin; sometimes flaked (hard-edged), folded or inked."""
    side = texture.shape[0]
    pink = np.array(EOSIN_RGB) + np.abs(rng.normal(0.0, 0.12, 3))
    pink = (pink / np.linalg.norm(pink)).astype(np.float32)
    amount = texture * rng.uniform(0.15, 1.4) + rng.uniform(0.0, 0.15)
    if rng.random() < 0.4:
        flakes = _strokes(side, rng)
        amount = amount * (flakes > 0.5 if rng.random() < 0.5 else flakes)
    density = amount[..., None].astype(np.float32) * pink
    density = density + texture[..., None] * rng.uniform(0.0, 0.25) * np.array(HEMATOXYLIN_RGB, np.float32)
    if rng.random() < 0.4:
        density = density * (1.0 + rng.uniform(0.3, 1.6) * _strokes(side, rng)[..., None])
    if rng.random() < 0.15:
        density = density + _strokes(side, rng)[..., None] * rng.uniform(0.1, 1.2, 3).astype(np.float32)
    return _empty(rgb_of(density.astype(np.float32)))
