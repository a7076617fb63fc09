"""Light and scanner: from stain amounts to 8-bit RGB.

In: amounts (3, H, W) with a margin, a style's colour numbers. Out: uint8 (H, W, 3). Beer-Lambert with the slide's stain
vectors, a point spread (with the scanner's sharpening folded into the kernel), and sensor noise hashed from the
absolute pixel. Sums run in one fixed order, so a pixel's bits do not depend on the window.
"""
# Compiled functions take no keyword-only arguments:
# ruff: noqa: PLR0917

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cellmill.synthetic.arrays import Codes, Floats, Singles
from cellmill.synthetic.noise import hash2, vnoise

__all__ = ["blurred", "dust", "gaussian_kernel", "sharpened_kernel", "to_bytes", "transmit"]

_LUT_STEP = 1.0 / 1024.0
_LUT = (10.0 ** (-np.arange(0, 4097) * _LUT_STEP)).astype(np.float32)
"""Transmission by optical density in steps of 1/1024 up to 4: one table for every machine, instead of libm's pow."""


def gaussian_kernel(sigma_px: float) -> NDArray[np.float32]:
    """Normalised one-dimensional Gaussian of radius 3 sigma."""
    radius = max(1, math.ceil(3.0 * sigma_px))
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / max(sigma_px, 1e-3)) ** 2)
    return (weights / weights.sum()).astype(np.float32)


def sharpened_kernel(sigma_px: float, sharpening: float) -> NDArray[np.float32]:
    """Point spread of `sigma_px` with an unsharp mask of twice its width folded in."""
    wide = gaussian_kernel(2.0 * sigma_px + 0.3)
    narrow = np.zeros_like(wide)
    core = gaussian_kernel(sigma_px)
    middle, half = len(wide) // 2, len(core) // 2
    narrow[middle - half : middle + half + 1] = core
    return ((1.0 + sharpening) * narrow - sharpening * wide).astype(np.float32)


@njit(cache=True, nogil=True)
def transmit(stains: Singles, vectors: Singles, lut: Singles = _LUT) -> Singles:
    """Light that passes: (3 colours, H, W) in [0, 1]. `vectors` is (3 stains, 3 colours)."""
    _, height, width = stains.shape
    light = np.empty((3, height, width), np.float32)
    for channel in range(3):
        a, b, c = vectors[0, channel], vectors[1, channel], vectors[2, channel]
        for row in range(height):
            for col in range(width):
                od = a * stains[0, row, col] + b * stains[1, row, col] + c * stains[2, row, col]
                place = min(max(od, np.float32(0.0)), np.float32(3.99)) * np.float32(1024.0)
                index = int(place)
                part = np.float32(place - np.float32(index))
                light[channel, row, col] = lut[index] + part * (lut[index + 1] - lut[index])
    return light


@njit(cache=True, nogil=True)
def blurred(light: Singles, kernel: Singles, margin: int) -> Singles:
    """Separable convolution; `margin` px (at least the kernel's radius) are lost on each side."""
    channels, height, width = light.shape
    radius = kernel.shape[0] // 2
    if radius > margin:
        raise ValueError("The kernel reaches further than the margin that is lost.")
    out = np.zeros((channels, height - 2 * margin, width - 2 * margin), np.float32)
    line = np.empty((height, width - 2 * margin), np.float32)
    for channel in range(channels):
        line.fill(np.float32(0.0))
        for row in range(margin - radius, height - margin + radius):
            for k in range(kernel.shape[0]):
                weight, shift = kernel[k], margin - radius + k
                for col in range(width - 2 * margin):
                    line[row, col] += weight * light[channel, row, col + shift]
        for row in range(height - 2 * margin):
            for k in range(kernel.shape[0]):
                weight, source = kernel[k], row + margin - radius + k
                for col in range(width - 2 * margin):
                    out[channel, row, col] += weight * line[source, col]
    return out


@njit(cache=True, nogil=True)
def to_bytes(
    light: Singles, white: Floats, gamma_table: Floats, noise: float, x0: int, y0: int, seed: np.uint64
) -> Codes:
    """Scanner response, glass grain and sensor noise: uint8 (H, W, 3)."""
    _, height, width = light.shape
    image = np.empty((height, width, 3), np.uint8)
    for row in range(height):
        for col in range(width):
            h = hash2(col + x0, row + y0, seed)
            # One shared (luminance) part and one of each colour; four hashed bytes make a rough bell.
            shared = float((h & np.uint64(255)) + ((h >> np.uint64(8)) & np.uint64(255))) - 255.0
            for channel in range(3):
                value = min(max(light[channel, row, col], np.float32(0.0)), np.float32(1.0))
                place = int(value * np.float32(1023.0) + np.float32(0.5))
                own = float((h >> np.uint64(16 + 12 * channel)) & np.uint64(4095)) / 16.0 - 128.0
                level = white[channel] * gamma_table[place] + noise * (0.006 * shared + 0.006 * own)
                image[row, col, channel] = np.uint8(min(max(level + 0.5, 0.0), 255.0))
    return image


@njit(cache=True, nogil=True)
def dust(light: Singles, compartments: Codes, x0: int, y0: int, mpp: float, seed: np.uint64) -> None:
    """Faint unevenness of empty glass, in place: lint and mounting medium, never darker than a few grey levels."""
    _, height, width = light.shape
    for row in range(height):
        y = (row + y0 + 0.5) * mpp
        for col in range(width):
            if compartments[row, col] == 0:
                x = (col + x0 + 0.5) * mpp
                dim = np.float32(1.0 - 0.018 * vnoise(x / 14.0, y / 14.0, seed))
                for channel in range(3):
                    light[channel, row, col] *= dim
