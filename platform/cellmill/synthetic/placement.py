"""Which cells are where: candidates on absolute lattices, thinned by a rule that only looks around.

In: a rectangle in um, a `World`, the chances of each kind in each compartment. Out: a table of objects, one row one
nucleus (or red cell, pigment clump, debris), sorted by key. A candidate survives when no candidate of higher priority
lies too close (Matern's second hard-core rule), which depends on its neighbourhood alone: a window sees the same cells
whatever its size, provided the rectangle is `CANDIDATE_MARGIN_UM` larger than where cells are used.
"""
# Compiled functions take no keyword-only arguments:
# ruff: noqa: PLR0917

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cellmill.synthetic import architecture as arch
from cellmill.synthetic.architecture import World
from cellmill.synthetic.arrays import Flags, Floats, Stats
from cellmill.synthetic.cell_types import (
    CONNECTIVE,
    DEAD,
    DEBRIS,
    EPITHELIAL,
    LYMPHOCYTE,
    MACROPHAGE,
    NEOPLASTIC,
    NEUTROPHIL,
    NUM_KINDS,
    NUM_TYPES,
    PIGMENT,
    RED_CELL,
)
from cellmill.synthetic.noise import gauss, hash2, unit

__all__ = ["CANDIDATE_MARGIN_UM", "MAX_RADIUS_UM", "NUM_OBJECT_COLUMNS", "find_objects", "kind_chances"]

MAX_RADIUS_UM = 11.0
"""No nucleus reaches further from its centre; sizes are clamped to it."""
CANDIDATE_MARGIN_UM = 2.0 * MAX_RADIUS_UM

# Columns of an object table.
(
    X,
    Y,
    KIND,
    A,
    B,
    COS,
    SIN,
    H2C,
    H2S,
    H3C,
    H3S,
    H4C,
    DENT,
    BEND,
    LOBES,
    HEMA,
    SOLID,
    RAND,
    PRIORITY,
    CYTO,
    NUCLEOLI,
    HALO_DRAW,
) = range(22)
NUM_OBJECT_COLUMNS = 22

_A_LIMIT_UM = 8.8


def kind_chances(
    *, tumour_lymphocytes: float, stroma_density: float, hemorrhage: float, pigment: float
) -> NDArray[np.float64]:
    """Chance of each kind at each lattice point: (lattice, compartment, kind)."""
    p = np.zeros((4, arch.NUM_COMPARTMENTS, NUM_KINDS))
    p[0, arch.TUMOUR, [NEOPLASTIC, DEAD]] = 0.90, 0.035
    p[0, arch.SQUAMOUS, [EPITHELIAL, DEAD]] = 0.80, 0.02
    p[1, arch.LYMPHOID, [LYMPHOCYTE, DEAD]] = 0.90, 0.01
    p[1, arch.STROMA, [LYMPHOCYTE, NEUTROPHIL]] = 0.03, 0.008
    p[1, arch.INFLAMED, [LYMPHOCYTE, NEUTROPHIL, DEAD]] = 0.22, 0.20, 0.015
    p[1, arch.TUMOUR, [LYMPHOCYTE, NEUTROPHIL]] = tumour_lymphocytes, 0.006
    p[1, arch.EPITHELIUM, [LYMPHOCYTE]] = 0.015
    p[1, arch.SQUAMOUS, [LYMPHOCYTE, NEUTROPHIL]] = 0.010, 0.004
    p[1, arch.NECROSIS, [NEUTROPHIL, LYMPHOCYTE]] = 0.07, 0.02
    p[1, arch.LUMEN, [NEUTROPHIL]] = 0.02
    p[1, arch.BLOOD, [LYMPHOCYTE, NEUTROPHIL]] = 0.02, 0.03
    p[2, arch.STROMA, [CONNECTIVE, MACROPHAGE]] = stroma_density, 0.04
    p[2, arch.INFLAMED, [CONNECTIVE, MACROPHAGE]] = 0.30, 0.34
    p[2, arch.LYMPHOID, [MACROPHAGE, CONNECTIVE]] = 0.10, 0.08
    p[2, arch.NECROSIS, [DEAD, MACROPHAGE]] = 0.62, 0.08
    p[2, arch.TUMOUR, [MACROPHAGE, CONNECTIVE]] = 0.035, 0.02
    p[2, arch.LUMEN, [DEAD, MACROPHAGE]] = 0.05, 0.03
    p[2, arch.FAT, [CONNECTIVE, MACROPHAGE]] = 0.75, 0.08
    p[3, arch.BLOOD, [RED_CELL]] = 0.85
    p[3, arch.STROMA, [RED_CELL, PIGMENT, DEBRIS]] = hemorrhage, pigment, 0.004
    p[3, arch.INFLAMED, [RED_CELL, PIGMENT, DEBRIS]] = 0.04 + hemorrhage, pigment, 0.01
    p[3, arch.TUMOUR, [PIGMENT]] = 0.4 * pigment
    p[3, arch.NECROSIS, [DEBRIS, RED_CELL]] = 0.16, 0.02
    p[3, arch.KERATIN, [DEBRIS]] = 0.05
    p[3, arch.LUMEN, [DEBRIS]] = 0.02
    p[3, arch.GLASS, [DEBRIS, PIGMENT]] = 0.0004, 0.0002
    return p


@njit(cache=True, nogil=True)
def _fill_shape(o: Floats, h: np.uint64, kind: int, x: float, y: float, angle: float, table: Floats) -> None:
    """Draw one object's size, outline and stain from its hash."""
    row = table[kind]
    area = row[0] * math.exp(row[1] * gauss(h, 1))
    area = min(max(area, 6.0 if kind < 7 else 1.5), 130.0)
    ratio = max(1.0, row[2] * math.exp(row[3] * gauss(h, 2)))
    a = min(math.sqrt(area * ratio / math.pi), _A_LIMIT_UM)
    o[X], o[Y], o[KIND] = x, y, kind
    o[A], o[B] = a, min(area / (math.pi * a), a)
    o[COS], o[SIN] = math.cos(angle), math.sin(angle)
    w = row[4]
    o[H2C], o[H2S] = w * gauss(h, 3) * 0.6, w * gauss(h, 4) * 0.6
    o[H3C], o[H3S], o[H4C] = 0.45 * w * gauss(h, 5), 0.45 * w * gauss(h, 6), 0.3 * w * gauss(h, 7)
    o[DENT] = row[5] * (0.4 + 0.6 * unit(h, 8)) if unit(h, 9) < 0.35 + row[5] else 0.0
    o[BEND] = row[6] * gauss(h, 10)
    o[LOBES] = 0.0
    if row[7] > 0.0:
        o[LOBES] = max(1.0, math.floor(row[7] + 1.3 * (unit(h, 11) - 0.5) + 0.5))
    o[HEMA] = max(0.12, row[8] + row[9] * gauss(h, 12)) if kind < 7 else row[8]
    o[CYTO] = row[15] * (0.85 + 0.3 * unit(h, 13))
    o[NUCLEOLI] = 1.0 + math.floor(2.6 * unit(h, 15) * unit(h, 15)) if unit(h, 14) < row[14] else 0.0
    o[RAND] = unit(h, 16)
    o[SOLID] = 0.0
    o[HALO_DRAW] = unit(h, 20)
    if kind == NEOPLASTIC and unit(h, 18) < 0.012:
        # A mitotic figure: a dark, ragged plate without membrane or nucleoli.
        o[SOLID], o[HEMA], o[NUCLEOLI], o[B] = 1.0, 1.5 * o[HEMA], 0.0, 0.62 * o[B]
        o[H3C], o[H3S], o[H4C] = 2.5 * o[H3C], 2.5 * o[H3S], 0.12
    if kind == DEAD and unit(h, 19) < 0.4:
        # Karyolysis: a fading ghost instead of a shrunken dark body.
        o[HEMA] *= 0.6
    o[PRIORITY] = unit(h, 17) + (1.0 if kind < 7 else 0.0)


@njit(cache=True, nogil=True)
def _pick(h: np.uint64, chances: Floats) -> int:
    """Kind drawn for a lattice point, -1 for none."""
    share = unit(h, 21)
    for kind in range(chances.shape[0]):
        if share < chances[kind]:
            return kind
        share -= chances[kind]
    return -1


@njit(cache=True, nogil=True)
def _grow(objects: Floats, n: int) -> Floats:
    if n < objects.shape[0]:
        return objects
    larger = np.zeros((2 * objects.shape[0], objects.shape[1]))
    for k in range(n):
        for column in range(objects.shape[1]):
            larger[k, column] = objects[k, column]
    return larger


@njit(cache=True, nogil=True)
def _lattice_candidates(
    objects: Floats,
    n: int,
    lattice: int,
    pitch: float,
    box: tuple[float, float, float, float],
    chances: Floats,
    structures: Floats,
    si0: int,
    sj0: int,
    table: Floats,
    w: World,
) -> tuple[Floats, int]:
    x0, y0, x1, y1 = box
    # Crowded lymphoid cells lie more evenly than others.
    jitter = 0.40 if lattice == 1 else 0.62
    j0, j1 = math.floor(y0 / pitch) - 1, math.floor(y1 / pitch) + 2
    i0, i1 = math.floor(x0 / pitch) - 1, math.floor(x1 / pitch) + 2
    for j in range(j0, j1):
        for i in range(i0, i1):
            h = hash2(i, j, w.seed + np.uint64(101 + lattice))
            # Odd rows are shifted by half a pitch: a hexagonal base, as crowded cells have.
            x = (i + 0.5 * (j & 1) + jitter * (unit(h, 31) - 0.5)) * pitch
            y = (j + jitter * (unit(h, 32) - 0.5)) * pitch
            if not (x0 <= x < x1 and y0 <= y < y1):
                continue
            depth = 0.0
            if arch.tissue_depth(x, y, w) < 2.0:
                compartment = arch.GLASS
            else:
                xw, yw = arch.warp(x, y, w)
                territory, _ = arch.territory_at(xw, yw, w)
                compartment, depth, _, _ = arch.compartment_at(xw, yw, structures, si0, sj0, territory, w)
            kind = _pick(h, chances[lattice, compartment])
            if kind < 0 or (compartment == arch.FAT and depth > 2.2):
                continue
            if arch.fold_at(x, y, w) > 0.0:
                continue
            angle = 2.0 * math.pi * unit(h, 33)
            if kind == CONNECTIVE:
                fx, fy = arch.fibre_direction(x, y, w)
                angle = math.atan2(fy, fx) + 0.22 * gauss(h, 34)
            objects = _grow(objects, n)
            _fill_shape(objects[n], h, kind, x, y, angle, table)
            n += 1
    return objects, n


@njit(cache=True, nogil=True)
def _ring_cells(
    objects: Floats,
    n: int,
    s: Floats,
    hash_s: np.uint64,
    box: tuple[float, float, float, float],
    table: Floats,
    w: World,
) -> tuple[Floats, int]:
    """Cells that line one gland: nuclei side by side near the base, long axis across the wall."""
    kind = NEOPLASTIC if s[arch.KIND] == arch.S_TUMOUR_GLAND else EPITHELIAL
    wild = 1.0 if kind == NEOPLASTIC else 0.35
    x0, y0, x1, y1 = box
    reach = s[arch.RADIUS] + 2.0 * w.warp_um
    if s[arch.CX] + reach < x0 or s[arch.CX] - reach > x1 or s[arch.CY] + reach < y0 or s[arch.CY] - reach > y1:
        return objects, n
    rows = 2 if s[arch.WALL] > (17.5 if kind == EPITHELIAL else 15.0) else 1
    for row in range(rows):
        radius = s[arch.RADIUS] - (0.30 if rows == 1 else 0.25 + 0.36 * row) * s[arch.WALL]
        if radius < 3.0:
            continue
        spacing = (7.4 + 1.6 * unit(hash_s, 51)) * math.sqrt(table[kind, 0] / 26.0)
        count = int(2.0 * math.pi * radius * (0.5 + 0.5 / s[arch.RATIO]) / spacing)
        for k in range(count):
            h = hash2(k, row, hash_s)
            if unit(h, 41) < 0.04 + 0.1 * row:
                continue
            phi = 2.0 * math.pi * (k + 0.5 * row + 0.28 * wild * (unit(h, 42) - 0.5)) / count
            q = radius + wild * 0.16 * s[arch.WALL] * gauss(h, 43)
            u, v = q * math.cos(phi), q * math.sin(phi) / s[arch.RATIO]
            xw = s[arch.CX] + u * s[arch.COS] - v * s[arch.SIN]
            yw = s[arch.CY] + u * s[arch.SIN] + v * s[arch.COS]
            x, y = arch.unwarp(xw, yw, w)
            if not (x0 <= x < x1 and y0 <= y < y1) or arch.tissue_depth(x, y, w) < 2.0 or arch.fold_at(x, y, w) > 0.0:
                continue
            nu, nv = math.cos(phi), math.sin(phi) * s[arch.RATIO]
            angle = math.atan2(nu * s[arch.SIN] + nv * s[arch.COS], nu * s[arch.COS] - nv * s[arch.SIN])
            objects = _grow(objects, n)
            _fill_shape(objects[n], h, kind, x, y, angle + 0.35 * wild * gauss(h, 44), table)
            objects[n, PRIORITY] += 1.0
            n += 1
    return objects, n


@njit(cache=True, nogil=True)
def _support(o: Floats, ux: float, uy: float) -> float:
    """Half-width of an object's ellipse along a unit direction from its centre."""
    c, s = ux * o[COS] + uy * o[SIN], uy * o[COS] - ux * o[SIN]
    return 1.0 / math.sqrt((c / o[A]) * (c / o[A]) + (s / o[B]) * (s / o[B]))


@njit(cache=True, nogil=True)
def _beats(p: Floats, q: Floats) -> bool:
    """Whether object p goes before q: priority, then position, so that the order is total."""
    if p[PRIORITY] != q[PRIORITY]:
        return p[PRIORITY] > q[PRIORITY]
    return p[X] < q[X] if p[X] != q[X] else p[Y] < q[Y]


@njit(cache=True, nogil=True)
def _survivors(objects: Floats, n: int, box: tuple[float, float, float, float]) -> Flags:
    """Which candidates have no stronger candidate within reach."""
    size = 2.0 * MAX_RADIUS_UM
    cols = int((box[2] - box[0]) / size) + 2
    rows = int((box[3] - box[1]) / size) + 2
    start = np.zeros(rows * cols + 1, np.int64)
    cell_of = np.empty(n, np.int64)
    for k in range(n):
        cell_of[k] = int((objects[k, Y] - box[1]) / size) * cols + int((objects[k, X] - box[0]) / size)
        start[cell_of[k] + 1] += 1
    for c in range(rows * cols):
        start[c + 1] += start[c]
    fill, order = start[:-1].copy(), np.empty(n, np.int64)
    for k in range(n):
        order[fill[cell_of[k]]] = k
        fill[cell_of[k]] += 1
    keep = np.ones(n, np.bool_)
    for k in range(n):
        p = objects[k]
        row, col = cell_of[k] // cols, cell_of[k] % cols
        for r in range(max(row - 1, 0), min(row + 2, rows)):
            first, last = start[r * cols + max(col - 1, 0)], start[r * cols + min(col + 1, cols - 1) + 1]
            for slot in range(first, last):
                q = objects[order[slot]]
                dx, dy = q[X] - p[X], q[Y] - p[Y]
                d = math.sqrt(dx * dx + dy * dy)
                if order[slot] == k or d > p[A] + q[A] or not _beats(q, p):
                    continue
                # Red cells and debris may lie on each other, nuclei only touch.
                room = 0.97 if p[KIND] < NUM_TYPES and q[KIND] < NUM_TYPES else 0.8
                if d < 1e-6 or d < room * (_support(p, dx / d, dy / d) + _support(q, dx / d, dy / d)):
                    keep[k] = False
                    break
            if not keep[k]:
                break
    return keep


@njit(cache=True, nogil=True)
def _candidates(
    box: tuple[float, float, float, float],
    chances: Floats,
    table: Floats,
    structures: Floats,
    si0: int,
    sj0: int,
    w: World,
) -> tuple[Floats, int, Flags]:
    """Candidates of all lattices and glands (the table has spare rows), their number, and which survive."""
    objects, n = np.zeros((512, NUM_OBJECT_COLUMNS)), 0
    for lattice in range(4):
        objects, n = _lattice_candidates(
            objects, n, lattice, w.pitches_um[lattice], box, chances, structures, si0, sj0, table, w
        )
    for j in range(structures.shape[0]):
        for i in range(structures.shape[1]):
            if structures[j, i, arch.KIND] == arch.S_GLAND or structures[j, i, arch.KIND] == arch.S_TUMOUR_GLAND:
                seed = hash2(i + si0, j + sj0, w.seed + np.uint64(91))
                objects, n = _ring_cells(objects, n, structures[j, i], seed, box, table, w)
    return objects, n, _survivors(objects, n, box)


def find_objects(
    box: tuple[float, float, float, float],
    *,
    chances: Floats,
    kinds: Floats,
    structures: tuple[Floats, int, int],
    world: World,
) -> tuple[Floats, Stats]:
    """Objects whose centre lies in `box` (x0, y0, x1, y1 in um) and their keys, sorted by key.

    Right for those `CANDIDATE_MARGIN_UM` inside the box.
    """
    objects, n, keep = _candidates(box, chances, kinds, *structures, world)
    found = objects[:n][keep]
    # The half-micrometre cell that holds the centre: two nuclei are never that close.
    column, row = np.floor(found[:, [X, Y]] * 2.0).astype(np.int64).T + (1 << 27)
    keys = row << 28 | column
    order = np.argsort(keys, kind="stable")
    return found[order], keys[order]
