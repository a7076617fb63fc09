"""From objects to label maps: the outline of a nucleus and who owns a pixel.

In: an object table (see `placement`), a pixel window. Out: per pixel the object's row + 1 (0 outside nuclei), and
how many pixels each object holds and where. A pixel in two outlines belongs to the one it lies deeper in; what is not
4-connected to the pixel of the centre is cut off, so every label is one component. Nuclei that lose their centre or
fall under `MIN_AREA_UM2` vanish whole, from picture and truth alike.
"""
# Compiled functions take no keyword-only arguments:
# ruff: noqa: PLR0917

import math

import numpy as np
from numba import njit

from cellmill.synthetic.arrays import Flags, Floats, Labels, Singles, Stats
from cellmill.synthetic.noise import hash2, unit
from cellmill.synthetic.placement import (
    BEND,
    COS,
    DENT,
    H2C,
    H2S,
    H3C,
    H3S,
    H4C,
    KIND,
    LOBES,
    MAX_RADIUS_UM,
    RAND,
    SIN,
    A,
    B,
    X,
    Y,
)

__all__ = ["MIN_AREA_UM2", "nucleus_t", "own_pixels"]

MIN_AREA_UM2 = 5.0

# Columns of the pixel statistics of an object, in absolute px; MAX is the last pixel inside.
COUNT, SUM_X, SUM_Y, MIN_X, MIN_Y, MAX_X, MAX_Y, NUM_STATS = range(8)


@njit(cache=True, nogil=True)
def _lobed_t(u: float, v: float, o: Floats) -> float:
    """Lobes on a bent chain through the centre, in units of the ellipse's axes."""
    n = int(o[LOBES])
    h = hash2(int(o[X] * 64.0), int(o[Y] * 64.0), np.uint64(7))
    # The first lobe sits on the centre, so that the centre's pixel is always inside. The others overlap it by a neck:
    # their reach less their radius is always below its radius.
    r0 = 0.52 if n > 1 else 0.85
    best = math.sqrt(u * u + v * v) / r0
    for k in range(1, n):
        angle = 6.2831853 * (o[RAND] + (k - 1) / (n - 1.0) * 0.8) + 0.6 * (unit(h, k) - 0.5)
        reach = 0.62 + 0.18 * unit(h, 10 + k)
        radius = 0.37 + 0.12 * unit(h, 20 + k)
        du, dv = u - reach * math.cos(angle), v - reach * math.sin(angle)
        best = min(best, math.sqrt(du * du + dv * dv) / radius)
    return best


@njit(cache=True, nogil=True)
def nucleus_t(dx: float, dy: float, o: Floats) -> float:
    """Normalised radius of the offset (dx, dy) um from the centre: below 1 inside the nucleus."""
    u = (dx * o[COS] + dy * o[SIN]) / o[A]
    v = (dy * o[COS] - dx * o[SIN]) / o[B]
    v += o[BEND] * u * u * o[A] / o[B]
    if o[LOBES] > 1.5:
        return _lobed_t(u, v, o)
    r = math.sqrt(u * u + v * v)
    if r < 1e-9:
        return 0.0
    c, s = u / r, v / r
    c2, s2 = c * c - s * s, 2.0 * c * s
    c3, s3 = c2 * c - s2 * s, c2 * s + s2 * c
    edge = 1.0 + o[H2C] * c2 + o[H2S] * s2 + o[H3C] * c3 + o[H3S] * s3 + o[H4C] * (c2 * c2 - s2 * s2)
    if o[DENT] > 0.0 and s > 0.0:
        s4 = s * s * s * s
        edge -= o[DENT] * s4 * s4
    return r / max(min(edge, 1.25), 0.3)


@njit(cache=True, nogil=True)
def _paint_object(k: int, o: Floats, labels: Labels, depth: Singles, x0: int, y0: int, mpp: float) -> None:
    height, width = labels.shape
    reach = min(1.26 * o[A] * (1.0 + abs(o[BEND])) + 0.5, MAX_RADIUS_UM)
    c0 = max(math.floor((o[X] - reach) / mpp) - x0, 0)
    c1 = min(math.floor((o[X] + reach) / mpp) - x0 + 1, width)
    r0 = max(math.floor((o[Y] - reach) / mpp) - y0, 0)
    r1 = min(math.floor((o[Y] + reach) / mpp) - y0 + 1, height)
    for row in range(r0, r1):
        dy = (row + y0 + 0.5) * mpp - o[Y]
        for col in range(c0, c1):
            dx = (col + x0 + 0.5) * mpp - o[X]
            t = nucleus_t(dx, dy, o)
            if t < 1.0 and t < depth[row, col] and dx * dx + dy * dy < reach * reach:
                depth[row, col], labels[row, col] = t, k + 1


@njit(cache=True, nogil=True)
def _mark_connected(
    k: int, o: Floats, labels: Labels, keep: Flags, stack: Stats, x0: int, y0: int, mpp: float, stats: Stats
) -> None:
    """Mark the pixels of object k that hang together with its centre's pixel, and measure them into `stats`."""
    height, width = labels.shape
    col, row = math.floor(o[X] / mpp) - x0, math.floor(o[Y] / mpp) - y0
    if not (0 <= col < width and 0 <= row < height) or labels[row, col] != k + 1:
        return
    stats[MIN_X], stats[MIN_Y] = col + x0, row + y0
    stats[MAX_X], stats[MAX_Y] = col + x0, row + y0
    keep[row, col], top = True, 1
    stack[0] = row * width + col
    while top > 0:
        top -= 1
        row, col = stack[top] // width, stack[top] % width
        x, y = col + x0, row + y0
        stats[COUNT] += 1
        stats[SUM_X] += x
        stats[SUM_Y] += y
        stats[MIN_X], stats[MIN_Y] = min(stats[MIN_X], x), min(stats[MIN_Y], y)
        stats[MAX_X], stats[MAX_Y] = max(stats[MAX_X], x), max(stats[MAX_Y], y)
        for step in range(4):
            r = row + (1 if step == 0 else (-1 if step == 1 else 0))
            c = col + (1 if step == 2 else (-1 if step == 3 else 0))
            if 0 <= r < height and 0 <= c < width and labels[r, c] == k + 1 and not keep[r, c]:
                keep[r, c] = True
                stack[top] = r * width + c
                top += 1


@njit(cache=True, nogil=True)
def own_pixels(objects: Floats, x0: int, y0: int, width: int, height: int, mpp: float) -> tuple[Labels, Stats]:
    """Label map (object row + 1) and per-object pixel statistics of the window at pixel (x0, y0).

    Right for objects that lie whole in the window together with all their neighbours.
    """
    labels = np.zeros((height, width), np.int32)
    depth = np.full((height, width), np.float32(9.0))
    for k in range(objects.shape[0]):
        _paint_object(k, objects[k], labels, depth, x0, y0, mpp)
    keep = np.zeros((height, width), np.bool_)
    stack = np.empty(min(height * width, int((2.0 * MAX_RADIUS_UM / mpp + 3.0) ** 2)), np.int64)
    stats = np.zeros((objects.shape[0], NUM_STATS), np.int64)
    for k in range(objects.shape[0]):
        _mark_connected(k, objects[k], labels, keep, stack, x0, y0, mpp, stats[k])
    for row in range(height):
        for col in range(width):
            k = labels[row, col] - 1
            if k >= 0:
                least = MIN_AREA_UM2 if objects[k, KIND] < 7 else 0.0
                if not keep[row, col] or stats[k, COUNT] * mpp * mpp < least:
                    labels[row, col], depth[row, col] = 0, np.float32(9.0)
    for k in range(objects.shape[0]):
        if objects[k, KIND] < 7 and stats[k, COUNT] * mpp * mpp < MIN_AREA_UM2:
            stats[k, COUNT] = 0
    return labels, stats
