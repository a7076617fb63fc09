"""Cells on top of the ground: cytoplasm, membranes, chromatin, nucleoli, and the folds over everything.

In: stain amounts (3, H, W) of the ground, objects and their label map of the same window. Out: the amounts, changed in
place. Cytoplasm belongs to the nearest nucleus (normalised by its reach), membranes run where two cells meet.
"""

import math

import numpy as np
from numba import njit

from cellmill.synthetic import architecture as arch
from cellmill.synthetic.cell_types import DEBRIS, PIGMENT, RED_CELL
from cellmill.synthetic.noise import hash2, smoothstep, unit, vnoise
from cellmill.synthetic.paint import F_FOLD
from cellmill.synthetic.placement import COS, CYTO, HEMA, KIND, NUCLEOLI, RAND, SIN, A, B, X, Y
from cellmill.synthetic.shapes import nucleus_t

__all__ = ["CYTOPLASM_REACH_UM", "paint_cytoplasm", "paint_folds", "paint_nuclei"]

CYTOPLASM_REACH_UM = 13.0

_CONFLUENT = (arch.TUMOUR, arch.EPITHELIUM, arch.SQUAMOUS)
_CLUMP, _CLUMP_AMOUNT, _RIM, _PALLOR = 10, 11, 12, 13
_CYTO_E, _CYTO_H, _VACUOLES = 16, 17, 18


@njit(cache=True, nogil=True)
def _nearest_cells(objects, areas, x0, y0, width, height, mpp):
    """Per pixel: row of the object whose cytoplasm holds it (-1: none), its distance and the runner-up's, normalised."""
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
        ra, rb = o[A] + extra, o[B] + extra
        reach = min(max(ra, rb), CYTOPLASM_REACH_UM)
        c0 = max(np.int64(math.floor((o[X] - reach) / mpp)) - x0, 0)
        c1 = min(np.int64(math.floor((o[X] + reach) / mpp)) - x0 + 1, width)
        r0 = max(np.int64(math.floor((o[Y] - reach) / mpp)) - y0, 0)
        r1 = min(np.int64(math.floor((o[Y] + reach) / mpp)) - y0 + 1, height)
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
def paint_cytoplasm(stains, compartments, objects, areas, x0, y0, mpp, table, seed):
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
            kind = np.int64(o[KIND])
            confluent = compartments[row, col] in _CONFLUENT
            cover = smoothstep(1.0, 0.72, t)
            own = 0.78 + 0.44 * o[RAND]
            grain = vnoise(x / 0.9, y / 0.9, seed + np.uint64(301))
            eosin = table[kind, _CYTO_E] * own * (0.8 + 0.4 * grain)
            hema = table[kind, _CYTO_H] * (1.6 - 0.6 * own) * (0.75 + 0.5 * grain)
            bubble = vnoise(x / 1.7, y / 1.7, seed + np.uint64(302))
            foam = table[kind, _VACUOLES] * smoothstep(0.5, 0.72, bubble)
            eosin, hema = eosin * (1.0 - 0.8 * foam), hema * (1.0 - 0.8 * foam)
            if confluent:
                # A thin darker line, or a paler gap, where two cells meet.
                meet = smoothstep(0.14, 0.0, second[row, col] - t) * smoothstep(0.45, 0.7, t)
                line = 0.10 if o[RAND] < 0.6 else -0.09
                eosin += line * meet
            stains[0, row, col] += np.float32(cover * (hema - stains[0, row, col]))
            stains[1, row, col] += np.float32(cover * (max(eosin, 0.0) - stains[1, row, col]))


@njit(cache=True, nogil=True)
def _chromatin(x, y, dx, dy, t, o, row, seed):
    """Hematoxylin of one nuclear pixel."""
    coarse = vnoise(x / row[_CLUMP], y / row[_CLUMP], seed + np.uint64(311)) - 0.5
    fine = vnoise(x / 0.55, y / 0.55, seed + np.uint64(312)) - 0.5
    amount = 1.0 + row[_CLUMP_AMOUNT] * (1.5 * coarse + 0.7 * fine)
    vesicular = 0.4 + 1.1 * o[RAND]
    amount *= 1.0 - row[_PALLOR] * vesicular * smoothstep(0.95, 0.3, t)
    amount *= 1.0 + row[_RIM] * vesicular * smoothstep(0.62, 0.92, t)
    hema = o[HEMA] * amount
    h = hash2(np.int64(o[X] * 64.0), np.int64(o[Y] * 64.0), seed)
    for k in range(np.int64(o[NUCLEOLI])):
        reach, angle = 0.45 * unit(h, 61 + k), 6.2831853 * unit(h, 71 + k)
        px = dx - reach * o[B] * math.cos(angle)
        py = dy - reach * o[B] * math.sin(angle)
        size = (0.10 + 0.16 * unit(h, 81 + k)) * math.sqrt(o[A] * o[B]) + 0.25
        hema += 0.55 * o[HEMA] * smoothstep(size * size * 1.5, size * size * 0.5, px * px + py * py)
    return max(hema, 0.05)


@njit(cache=True, nogil=True)
def paint_nuclei(stains, labels, objects, x0, y0, mpp, table, seed):
    """Draw nuclei, red cells, pigment and debris where the label map says they are."""
    height, width = labels.shape
    for row in range(height):
        y = (row + y0 + 0.5) * mpp
        for col in range(width):
            k = labels[row, col] - 1
            if k < 0:
                continue
            o = objects[k]
            kind = np.int64(o[KIND])
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
                under = 0.55 if kind != 3 else 0.95
                stains[1, row, col] = np.float32(under * stains[1, row, col] + 0.03)


@njit(cache=True, nogil=True)
def paint_folds(stains, compartments, fields, x0, y0, mpp, step, w):
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
            stains[0, row, col] += np.float32(fold * (0.10 + 0.22 * streak))
            stains[1, row, col] = np.float32(stains[1, row, col] * (1.0 + 0.8 * fold) + fold * 0.16 * streak)
