"""Cells on top of the ground: cytoplasm, membranes, chromatin, nucleoli, and the folds over everything.

In: stain amounts (3, H, W) of the ground, objects and their label map of the same window. Out: the amounts, changed in
place. Cytoplasm belongs to the nearest nucleus (normalised by its reach), membranes run where two cells meet.
"""
# Compiled functions take no keyword-only arguments:
# ruff: noqa: PLR0917

import math

import numpy as np
from numba import njit

from cellmill.synthetic import architecture as arch
from cellmill.synthetic.architecture import World
from cellmill.synthetic.arrays import Codes, Floats, Labels, Singles, Stats
from cellmill.synthetic.cell_types import (
    CLUMP,
    CLUMP_UM,
    CYTOPLASM_EOSIN,
    CYTOPLASM_HEMATOXYLIN,
    CYTOPLASM_VACUOLES,
    DEAD,
    DEBRIS,
    EPITHELIAL,
    HALO,
    MEMBRANE,
    NEOPLASTIC,
    PALLOR,
    PIGMENT,
    RED_CELL,
    RIM,
)
from cellmill.synthetic.noise import hash2, smoothstep, unit, vnoise
from cellmill.synthetic.paint import F_FOLD
from cellmill.synthetic.placement import COS, CYTO, HALO_DRAW, HEMA, KIND, NUCLEOLI, RAND, SIN, SOLID, A, B, X, Y
from cellmill.synthetic.shapes import nucleus_t

__all__ = ["CYTOPLASM_REACH_UM", "paint_cytoplasm", "paint_folds", "paint_grain", "paint_nuclei"]

CYTOPLASM_REACH_UM = 13.0
SHEET_REACH_UM = 6.5
"""Least cytoplasm around nuclei of epithelial sheets, so that neighbours meet."""

_CONFLUENT = (arch.TUMOUR, arch.EPITHELIUM, arch.SQUAMOUS)


@njit(cache=True, nogil=True)
def _nearest_cells(
    objects: Floats, areas: Stats, x0: int, y0: int, width: int, height: int, mpp: float
) -> tuple[Labels, Singles, Singles]:
    """Per pixel: the object whose cytoplasm holds it (-1: none), its normalised distance and the runner-up's."""
    owner = np.full((height, width), np.int32(-1))
    first = np.full((height, width), np.float32(1.0))
    second = np.full((height, width), np.float32(9.0))
    for k in range(objects.shape[0]):
        o = objects[k]
        if areas[k] == 0 or o[CYTO] <= 0.0:
            continue
        radius = math.sqrt(o[A] * o[B])
        # Reach grows by a constant amount beyond the nucleus, so that long nuclei do not get long cells.
        extra = (o[CYTO] - 1.0) * radius
        if o[KIND] == NEOPLASTIC or o[KIND] == EPITHELIAL:
            extra = max(extra, SHEET_REACH_UM)
        ra, rb = o[A] + extra, o[B] + extra
        reach = min(max(ra, rb), CYTOPLASM_REACH_UM)
        c0 = max(math.floor((o[X] - reach) / mpp) - x0, 0)
        c1 = min(math.floor((o[X] + reach) / mpp) - x0 + 1, width)
        r0 = max(math.floor((o[Y] - reach) / mpp) - y0, 0)
        r1 = min(math.floor((o[Y] + reach) / mpp) - y0 + 1, height)
        for row in range(r0, r1):
            dy = (row + y0 + 0.5) * mpp - o[Y]
            for col in range(c0, c1):
                dx = (col + x0 + 0.5) * mpp - o[X]
                u, v = (dx * o[COS] + dy * o[SIN]) / ra, (dy * o[COS] - dx * o[SIN]) / rb
                t = np.float32(math.sqrt(u * u + v * v))
                if t >= 1.0 or dx * dx + dy * dy >= reach * reach:
                    continue
                if t < first[row, col]:
                    second[row, col] = first[row, col]
                    first[row, col], owner[row, col] = t, k
                elif t < second[row, col]:
                    second[row, col] = t
    return owner, first, second


@njit(cache=True, nogil=True)
def paint_cytoplasm(
    stains: Singles,
    compartments: Codes,
    objects: Floats,
    areas: Stats,
    x0: int,
    y0: int,
    mpp: float,
    table: Floats,
    seed: np.uint64,
) -> None:
    """Lay each cell's cytoplasm over the ground."""
    height, width = compartments.shape
    owner, first, second = _nearest_cells(objects, areas, x0, y0, width, height, mpp)
    for row in range(height):
        y = (row + y0 + 0.5) * mpp
        for col in range(width):
            k = owner[row, col]
            if k < 0:
                continue
            x = (col + x0 + 0.5) * mpp
            o, t = objects[k], first[row, col]
            kind = int(o[KIND])
            confluent = compartments[row, col] in _CONFLUENT
            sheet = kind in (NEOPLASTIC, EPITHELIAL)
            cover = smoothstep(1.0, 0.85 if sheet else 0.72, t)
            if sheet and not confluent:
                # Epithelial cells end where their sheet ends.
                continue
            own = 0.82 + 0.36 * o[RAND]
            grain = 0.65 * vnoise(x / 1.1, y / 1.1, seed + np.uint64(301))
            grain += 0.35 * vnoise(x / 0.5, y / 0.5, seed + np.uint64(303))
            eosin = table[kind, CYTOPLASM_EOSIN] * own * (0.65 + 0.7 * grain)
            hema = table[kind, CYTOPLASM_HEMATOXYLIN] * (1.6 - 0.6 * own) * (0.6 + 0.8 * grain)
            bubble = vnoise(x / 1.7, y / 1.7, seed + np.uint64(302))
            foam = table[kind, CYTOPLASM_VACUOLES] * smoothstep(0.5, 0.72, bubble)
            eosin, hema = eosin * (1.0 - 0.8 * foam), hema * (1.0 - 0.8 * foam)
            if confluent:
                # A darker line, or a paler gap, where two cells meet.
                meet = smoothstep(0.16, 0.0, second[row, col] - t) * smoothstep(0.45, 0.7, t)
                eosin += table[kind, MEMBRANE] * meet
                if o[HALO_DRAW] < table[kind, HALO]:
                    # Shrinkage: a pale gap, wider on one side, just outside the nucleus.
                    radius = math.sqrt(o[A] * o[B])
                    gap = t * (radius + SHEET_REACH_UM) - radius
                    wide = 0.5 + 2.2 * vnoise(x / 4.0, y / 4.0, seed + np.uint64(304))
                    pale = smoothstep(wide, 0.6 * wide, gap)
                    eosin, hema = eosin * (1.0 - 0.85 * pale), hema * (1.0 - 0.85 * pale)
            stains[0, row, col] += np.float32(cover * (hema - stains[0, row, col]))
            stains[1, row, col] += np.float32(cover * (max(eosin, 0.0) - stains[1, row, col]))


@njit(cache=True, nogil=True)
def _chromatin(x: float, y: float, dx: float, dy: float, t: float, o: Floats, row: Floats, seed: np.uint64) -> float:
    """Hematoxylin of one nuclear pixel."""
    coarse = vnoise(x / row[CLUMP_UM], y / row[CLUMP_UM], seed + np.uint64(311)) - 0.5
    fine = vnoise(x / 0.55, y / 0.55, seed + np.uint64(312)) - 0.5
    amount = 1.0 + row[CLUMP] * (2.3 * coarse + 1.5 * fine)
    vesicular = 0.4 + 1.1 * o[RAND]
    if o[SOLID] > 0.0:
        return o[HEMA] * (1.0 + 0.2 * coarse)
    amount *= 1.0 - row[PALLOR] * vesicular * smoothstep(0.95, 0.3, t)
    amount *= 1.0 + row[RIM] * vesicular * smoothstep(0.70, 0.93, t)
    hema = o[HEMA] * amount
    h = hash2(int(o[X] * 64.0), int(o[Y] * 64.0), seed)
    for k in range(int(o[NUCLEOLI])):
        reach, angle = 0.45 * unit(h, 61 + k), 6.2831853 * unit(h, 71 + k)
        px = dx - reach * o[B] * math.cos(angle)
        py = dy - reach * o[B] * math.sin(angle)
        size = (0.10 + 0.16 * unit(h, 81 + k)) * math.sqrt(o[A] * o[B]) + 0.25
        hema += 0.55 * o[HEMA] * smoothstep(size * size * 1.5, size * size * 0.5, px * px + py * py)
    return max(hema, 0.05)


@njit(cache=True, nogil=True)
def paint_nuclei(
    stains: Singles, labels: Labels, objects: Floats, x0: int, y0: int, mpp: float, table: Floats, seed: np.uint64
) -> None:
    """Draw nuclei, red cells, pigment and debris where the label map says they are."""
    height, width = labels.shape
    for row in range(height):
        y = (row + y0 + 0.5) * mpp
        for col in range(width):
            k = labels[row, col] - 1
            if k < 0:
                continue
            o = objects[k]
            kind = int(o[KIND])
            x = (col + x0 + 0.5) * mpp
            dx, dy = x - o[X], y - o[Y]
            t = nucleus_t(dx, dy, o)
            if kind == RED_CELL:
                ring = 1.0 - 0.3 * smoothstep(0.7, 0.0, t)
                stains[0, row, col] = 0.01
                stains[1, row, col] = np.float32((0.42 + 0.25 * o[RAND]) * ring)
                stains[2, row, col] = np.float32(0.16 * ring)
            elif kind == PIGMENT:
                stains[2, row, col] += np.float32(0.35 + 0.75 * vnoise(x / 0.7, y / 0.7, seed + np.uint64(321)))
            elif kind == DEBRIS:
                stains[0, row, col] += np.float32(o[HEMA] * vnoise(x / 0.8, y / 0.8, seed + np.uint64(322)))
            else:
                hema = _chromatin(x, y, dx, dy, t, o, table[kind], seed)
                edge = smoothstep(1.0, 0.90, t) * 0.45 + 0.55
                stains[0, row, col] = np.float32(edge * hema + (1.0 - edge) * stains[0, row, col])
                under = 0.55 if kind != DEAD else 0.95
                stains[1, row, col] = np.float32(under * stains[1, row, col] + 0.03)


@njit(cache=True, nogil=True)
def paint_grain(stains: Singles, x0: int, y0: int, mpp: float, amount: float, seed: np.uint64) -> None:
    """Unevenness of the section itself at the scale of a micrometre, over everything that is stained."""
    _, height, width = stains.shape
    for row in range(height):
        y = (row + y0 + 0.5) * mpp
        for col in range(width):
            if stains[0, row, col] + stains[1, row, col] < 0.02:
                continue
            x = (col + x0 + 0.5) * mpp
            factor = np.float32(1.0 + amount * (vnoise(x / 0.7, y / 0.7, seed) - 0.5))
            stains[0, row, col] *= factor
            stains[1, row, col] *= factor


@njit(cache=True, nogil=True)
def paint_folds(
    stains: Singles, compartments: Codes, fields: Floats, x0: int, y0: int, mpp: float, step: int, w: World
) -> None:
    """Fold the section over: more of everything, drawn out along the crease, and no nuclei to be told apart."""
    height, width = compartments.shape
    gx0, gy0 = x0 // step, y0 // step
    for row in range(height):
        py = row + y0
        r = py // step - gy0
        ty = (py - (r + gy0) * step) / step
        for col in range(width):
            px = col + x0
            c = px // step - gx0
            if compartments[row, col] == arch.GLASS:
                continue
            if fields[F_FOLD, r, c] + fields[F_FOLD, r, c + 1] + fields[F_FOLD, r + 1, c] == 0.0:
                continue
            tx = (px - (c + gx0) * step) / step
            top = fields[F_FOLD, r, c] + tx * (fields[F_FOLD, r, c + 1] - fields[F_FOLD, r, c])
            bottom = fields[F_FOLD, r + 1, c] + tx * (fields[F_FOLD, r + 1, c + 1] - fields[F_FOLD, r + 1, c])
            fold = top + ty * (bottom - top)
            if fold <= 0.0:
                continue
            x, y = (px + 0.5) * mpp, (py + 0.5) * mpp
            streak = vnoise(x / 3.0, y / 3.0, w.seed + np.uint64(331)) + vnoise(
                x / 9.0, y / 9.0, w.seed + np.uint64(332)
            )
            # The second layer is the tissue next to it: only as dense as what lies there.
            there = min(1.0, 4.0 * (stains[0, row, col] + stains[1, row, col]))
            stains[0, row, col] += np.float32(fold * there * (0.10 + 0.22 * streak))
            stains[1, row, col] = np.float32(stains[1, row, col] * (1.0 + 0.8 * fold) + fold * there * 0.16 * streak)
