"""What people and scanners add to a slide: a pen stroke on the coverslip, a patch out of focus.

In: the slide's size in um and a seed. Out: frozen `SlideMarks`, and the kernels that put them on light. Both are fixed
places of the slide, so that a test knows which cells they hide.
"""
# Compiled functions take no keyword-only arguments:
# ruff: noqa: PLR0917

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cellmill.synthetic.arrays import Floats, Singles
from cellmill.synthetic.noise import smoothstep, vnoise

__all__ = ["BlurPatch", "PenStroke", "SlideMarks", "draw_marks"]

_INKS = ((0.10, 0.22, 0.62), (0.06, 0.42, 0.22), (0.10, 0.10, 0.12))
"""Transmission of the ink where it is thick: blue, green, black. Red is left out: by colour it is eosin."""


@dataclass(frozen=True)
class PenStroke:
    """A straight stroke with a wavering edge, from (x0, y0) to (x1, y1) in um."""

    x0_um: float
    y0_um: float
    x1_um: float
    y1_um: float
    half_width_um: float
    ink: tuple[float, float, float]

    def covers(self, x_um: NDArray[np.float64], y_um: NDArray[np.float64], *, margin_um: float) -> NDArray[np.bool_]:
        """Which points lie within the stroke's widest edge plus a margin."""
        dx, dy = self.x1_um - self.x0_um, self.y1_um - self.y0_um
        share = np.clip(((x_um - self.x0_um) * dx + (y_um - self.y0_um) * dy) / (dx * dx + dy * dy), 0.0, 1.0)
        distance = np.hypot(x_um - self.x0_um - share * dx, y_um - self.y0_um - share * dy)
        return distance < 1.15 * self.half_width_um + margin_um


@dataclass(frozen=True)
class BlurPatch:
    """A disc out of focus; sharp at `radius_um`, fully blurred within 70 % of it."""

    x_um: float
    y_um: float
    radius_um: float
    sigma_um: float

    def covers(self, x_um: NDArray[np.float64], y_um: NDArray[np.float64], *, margin_um: float) -> NDArray[np.bool_]:
        """Which points lie in the disc plus a margin."""
        return np.hypot(x_um - self.x_um, y_um - self.y_um) < self.radius_um + margin_um


@dataclass(frozen=True)
class SlideMarks:
    """The marks of one slide; either may be absent."""

    pen: PenStroke | None
    blur: BlurPatch | None


def draw_marks(seed: int, *, extent_um: tuple[float, float]) -> SlideMarks:
    """A pen stroke from the glass into the tissue and a blurred disc, away from each other."""
    rng = np.random.default_rng([0xAB5, seed & 0xFFFFFFFFFFFFFFFF])
    width, height = extent_um
    side = min(extent_um)
    left = bool(rng.random() < 0.5)
    x0 = (0.04 if left else 0.96) * width
    x1 = (0.26 if left else 0.74) * width
    y0 = rng.uniform(0.15, 0.75) * height
    pen = PenStroke(
        x0_um=x0,
        y0_um=y0,
        x1_um=x1,
        y1_um=y0 + rng.uniform(-0.12, 0.12) * height,
        half_width_um=float(np.clip(0.035 * side, 25.0, 260.0)),
        ink=_INKS[int(rng.integers(len(_INKS)))],
    )
    blur = BlurPatch(
        x_um=float(rng.uniform(0.5, 0.65) if left else rng.uniform(0.35, 0.5)) * width,
        y_um=float(rng.uniform(0.35, 0.65)) * height,
        radius_um=float(np.clip(0.09 * side, 60.0, 500.0)),
        sigma_um=float(rng.uniform(2.5, 4.0)),
    )
    return SlideMarks(pen=pen, blur=blur)


@njit(cache=True, nogil=True)
def ink(light: Singles, x0: int, y0: int, mpp: float, stroke: Floats, seed: np.uint64) -> None:
    """Put a pen stroke on light (3, H, W), in place. `stroke`: x0, y0, x1, y1, half width, ink R, G, B."""
    _, height, width = light.shape
    dx, dy = stroke[2] - stroke[0], stroke[3] - stroke[1]
    length = dx * dx + dy * dy
    half = stroke[4]
    for row in range(height):
        y = (row + y0 + 0.5) * mpp
        for col in range(width):
            x = (col + x0 + 0.5) * mpp
            share = min(max(((x - stroke[0]) * dx + (y - stroke[1]) * dy) / length, 0.0), 1.0)
            px, py = x - stroke[0] - share * dx, y - stroke[1] - share * dy
            distance = math.sqrt(px * px + py * py)
            if distance > 1.15 * half:
                continue
            edge = half * (0.92 + 0.2 * vnoise(x / 60.0, y / 60.0, seed))
            cover = smoothstep(edge + 3.0, edge - 3.0, distance)
            cover *= 0.75 + 0.25 * vnoise(x / 12.0, y / 35.0, seed + np.uint64(1))
            for channel in range(3):
                light[channel, row, col] *= np.float32(1.0 - cover * (1.0 - stroke[5 + channel]))


@njit(cache=True, nogil=True)
def blend_blur(
    sharp: Singles, soft: Singles, x0: int, y0: int, mpp: float, center_x: float, center_y: float, radius: float
) -> None:
    """Replace `sharp` by `soft` inside the disc, in place, with a gradual edge."""
    _, height, width = sharp.shape
    for row in range(height):
        y = (row + y0 + 0.5) * mpp - center_y
        for col in range(width):
            x = (col + x0 + 0.5) * mpp - center_x
            distance = math.sqrt(x * x + y * y)
            if distance >= radius:
                continue
            share = np.float32(smoothstep(radius, 0.7 * radius, distance))
            for channel in range(3):
                sharp[channel, row, col] += share * (soft[channel, row, col] - sharp[channel, row, col])
