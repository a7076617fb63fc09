"""Where which tissue is: territories, structures in them, and the compartment of a point.

In: a `World` (numbers drawn per slide) and positions in um. Out: compartment codes, depths and structure tables.
Two jittered lattices carry the architecture. Territories (hundreds of um) say what kind of tissue this is; structures
(about a hundred um) are the glands, nests, vessels and keratin pearls in it. Both are read in warped coordinates, so
that nothing is a circle. Every function is local: it looks at the lattice points around a position and no further.
"""
# Compiled functions take no keyword-only arguments, and return where a case ends:
# ruff: noqa: PLR0911, PLR0917

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from cellmill.synthetic.arrays import Floats
from cellmill.synthetic.noise import hash2, unit, vnoise

__all__ = [
    "BLOOD",
    "EPITHELIUM",
    "FAT",
    "GLASS",
    "INFLAMED",
    "KERATIN",
    "LUMEN",
    "LYMPHOID",
    "NECROSIS",
    "NUM_COMPARTMENTS",
    "RETRACTION_UM",
    "SQUAMOUS",
    "STROMA",
    "TUMOUR",
    "World",
    "compartment_at",
    "fibre_direction",
    "fibre_potential",
    "fold_at",
    "structure_table",
    "territory_at",
    "tissue_depth",
    "unwarp",
    "warp",
]

# Compartments: what a point of tissue is made of.
GLASS, STROMA, EPITHELIUM, LUMEN, TUMOUR, LYMPHOID, FAT, NECROSIS, INFLAMED, SQUAMOUS, KERATIN, BLOOD = range(12)
NUM_COMPARTMENTS = 12

# Territories: what kind of tissue a neighbourhood is; `World.mix` holds their cumulative shares in this order.
T_GLANDULAR, T_NESTS, T_SOLID, T_LYMPHOID, T_FIBROUS, T_FAT, T_NECROSIS, T_INFLAMED, T_SQUAMOUS = range(9)

RETRACTION_UM = 4.5
"""How wide the cleft between a nest and its stroma can be."""

# Structures, and the columns of a structure table.
S_NONE, S_GLAND, S_TUMOUR_GLAND, S_NEST, S_VESSEL, S_PEARL = range(6)
CX, CY, RADIUS, RATIO, COS, SIN, WALL, KIND, RANDOM, NUM_COLUMNS = range(10)


class World(NamedTuple):
    """One slide's architecture in numbers, in the form the compiled kernels take."""

    seed: np.uint64
    mix: tuple[float, float, float, float, float, float, float, float, float]
    """Cumulative shares of the nine territories."""
    territory_um: float
    structure_um: float
    pitches_um: tuple[float, float, float, float]
    """Spacing of the cell lattices: epithelial sheets, lymphoid cells, scattered cells, red cells and debris."""
    warp_um: float
    malignancy: float
    """Share of glands lined by neoplastic instead of epithelial cells."""
    fibre_um: float
    fibre_cos: float
    fibre_sin: float
    """Main direction of the collagen."""
    glass_share: float
    """Threshold of the noise that opens holes; 0 for unbroken tissue."""
    fold_share: float
    extent_w_um: float
    """Slide width; tissue keeps clear of the slide's edge. 0 for tissue without end."""
    extent_h_um: float


@njit(cache=True, nogil=True)
def warp(x: float, y: float, w: World) -> tuple[float, float]:
    """Warped position of (x, y): what makes outlines wander."""
    s = w.seed
    dx = (vnoise(x / 95.0, y / 95.0, s + np.uint64(11)) - 0.5) * 2.0 * w.warp_um
    dy = (vnoise(x / 95.0, y / 95.0, s + np.uint64(12)) - 0.5) * 2.0 * w.warp_um
    dx += (vnoise(x / 27.0, y / 27.0, s + np.uint64(13)) - 0.5) * 0.5 * w.warp_um
    dy += (vnoise(x / 27.0, y / 27.0, s + np.uint64(14)) - 0.5) * 0.5 * w.warp_um
    return x + dx, y + dy


@njit(cache=True, nogil=True)
def unwarp(xw: float, yw: float, w: World) -> tuple[float, float]:
    """A position whose warp is (xw, yw), by fixed-point steps; a fixed number of them, so the result is exact."""
    x, y = xw, yw
    for _ in range(6):
        px, py = warp(x, y, w)
        x, y = x + 0.8 * (xw - px), y + 0.8 * (yw - py)
    return x, y


@njit(cache=True, nogil=True)
def tissue_depth(x: float, y: float, w: World) -> float:
    """Signed depth in the tissue in um, roughly; negative on glass."""
    n = 0.62 * vnoise(x / 420.0, y / 420.0, w.seed + np.uint64(21))
    n += 0.26 * vnoise(x / 120.0, y / 120.0, w.seed + np.uint64(22))
    n += 0.12 * vnoise(x / 33.0, y / 33.0, w.seed + np.uint64(23))
    depth = (n - w.glass_share) * 420.0
    if w.extent_w_um > 0.0:
        margin = 0.07 * min(w.extent_w_um, w.extent_h_um)
        cx, cy = 0.5 * w.extent_w_um, 0.5 * w.extent_h_um
        # A rounded rectangle with a ragged edge: power 4 lies between an ellipse and a box.
        u, v = (x - cx) / (cx - margin), (y - cy) / (cy - margin)
        q = math.sqrt(math.sqrt(u * u * u * u + v * v * v * v))
        edge = (1.0 - q) * (min(cx, cy) - margin) + (n - 0.5) * 1.8 * margin
        depth = min(depth, edge)
    return depth


@njit(cache=True, nogil=True)
def territory_at(xw: float, yw: float, w: World) -> tuple[int, np.uint64]:
    """Kind of the territory that holds a warped position, and that territory's hash."""
    pitch = w.territory_um
    # Territories meet in wandering lines, not in the straight ones of a Voronoi pattern.
    u, v = 1.6 * xw / pitch, 1.6 * yw / pitch
    xw, yw = (
        xw + (vnoise(u, v, w.seed + np.uint64(32)) - 0.5) * 0.8 * pitch,
        yw + (vnoise(u, v, w.seed + np.uint64(33)) - 0.5) * 0.8 * pitch,
    )
    ci, cj = math.floor(xw / pitch), math.floor(yw / pitch)
    best, found = 1e30, np.uint64(0)
    for j in range(cj - 1, cj + 2):
        for i in range(ci - 1, ci + 2):
            h = hash2(i, j, w.seed + np.uint64(31))
            px = (i + 0.05 + 0.9 * unit(h, 1)) * pitch - xw
            py = (j + 0.05 + 0.9 * unit(h, 2)) * pitch - yw
            d = px * px + py * py
            if d < best:
                best, found = d, h
    share = unit(found, 3)
    kind = 0
    while kind < 8 and share >= w.mix[kind]:
        kind += 1
    return kind, found


@njit(cache=True, nogil=True)
def _fill_structure(row: Floats, i: int, j: int, w: World) -> None:
    pitch = w.structure_um
    h = hash2(i, j, w.seed + np.uint64(41))
    row[CX] = (i + 0.25 + 0.5 * unit(h, 1)) * pitch
    row[CY] = (j + 0.25 + 0.5 * unit(h, 2)) * pitch
    territory, t_hash = territory_at(row[CX], row[CY], w)
    angle = unit(h, 3) * math.pi
    row[COS], row[SIN] = math.cos(angle), math.sin(angle)
    row[RATIO] = 1.0 + 0.9 * unit(h, 4) * unit(h, 5)
    row[RANDOM] = unit(h, 6)
    row[KIND], row[RADIUS], row[WALL] = S_NONE, 0.0, 0.0
    size, chance = unit(h, 7), unit(h, 8)
    if territory == T_GLANDULAR and chance < 0.92:
        row[KIND] = S_TUMOUR_GLAND if unit(t_hash, 9) < w.malignancy else S_GLAND
        row[RADIUS] = (0.30 + 0.24 * size) * pitch
        row[WALL] = 13.0 + 9.0 * unit(h, 10)
    elif territory == T_NESTS and chance < 0.85:
        row[KIND] = S_NEST
        row[RADIUS] = (0.25 + 0.4 * size) * pitch
    elif territory == T_SQUAMOUS and chance < 0.6:
        row[KIND] = S_PEARL
        row[RADIUS] = (0.35 + 0.4 * size) * pitch
        row[WALL] = row[RADIUS] * (0.35 + 0.3 * unit(h, 10))
    elif (territory in (T_FIBROUS, T_INFLAMED) and chance < 0.4) or (territory == T_FAT and chance < 0.1):
        row[KIND] = S_VESSEL
        row[RADIUS] = 8.0 + 22.0 * size
        row[WALL] = 2.5 + 5.0 * unit(h, 10)


@njit(cache=True, nogil=True)
def structure_table(x0: float, y0: float, x1: float, y1: float, w: World) -> tuple[Floats, int, int]:
    """Structures that can matter in the rectangle (um): (rows, columns, NUM_COLUMNS); and their lattice corner."""
    pitch, reach = w.structure_um, 2.0 * w.warp_um
    i0, j0 = math.floor((x0 - reach) / pitch) - 1, math.floor((y0 - reach) / pitch) - 1
    i1, j1 = math.floor((x1 + reach) / pitch) + 2, math.floor((y1 + reach) / pitch) + 2
    table = np.zeros((j1 - j0, i1 - i0, NUM_COLUMNS))
    for j in range(j0, j1):
        for i in range(i0, i1):
            _fill_structure(table[j - j0, i - i0], i, j, w)
    return table, i0, j0


@njit(cache=True, nogil=True)
def _structure_at(xw: float, yw: float, table: Floats, i0: int, j0: int, w: World) -> tuple[float, int, int]:
    """Depth in the structure that holds the warped position, and its row and column in the table.

    Negative just outside a structure, hugely negative further than `RETRACTION_UM` from any.
    """
    ci = math.floor(xw / w.structure_um) - i0
    cj = math.floor(yw / w.structure_um) - j0
    best, bi, bj = -1e30, ci, cj
    for j in range(max(cj - 1, 0), min(cj + 2, table.shape[0])):
        for i in range(max(ci - 1, 0), min(ci + 2, table.shape[1])):
            if table[j, i, RADIUS] == 0.0:
                continue
            dx, dy = xw - table[j, i, CX], yw - table[j, i, CY]
            reach = table[j, i, RADIUS] + RETRACTION_UM
            if dx * dx + dy * dy > reach * reach:
                continue
            u = dx * table[j, i, COS] + dy * table[j, i, SIN]
            v = (dy * table[j, i, COS] - dx * table[j, i, SIN]) * table[j, i, RATIO]
            depth = table[j, i, RADIUS] - math.sqrt(u * u + v * v)
            if depth > best:
                best, bi, bj = depth, i, j
    return best, bj, bi


@njit(cache=True, nogil=True)
def border_distance(xw: float, yw: float, pitch: float, seed: np.uint64) -> float:
    """Distance-like value to the nearest border of a jittered Voronoi pattern: septa, adipocyte walls."""
    ci, cj = math.floor(xw / pitch), math.floor(yw / pitch)
    d1, d2 = 1e30, 1e30
    for j in range(cj - 1, cj + 2):
        for i in range(ci - 1, ci + 2):
            h = hash2(i, j, seed)
            px = (i + 0.2 + 0.6 * unit(h, 1)) * pitch - xw
            py = (j + 0.2 + 0.6 * unit(h, 2)) * pitch - yw
            d = px * px + py * py
            if d < d1:
                d1, d2 = d, d1
            elif d < d2:
                d2 = d
    return 0.5 * (math.sqrt(d2) - math.sqrt(d1))


@njit(cache=True, nogil=True)
def _inside(table: Floats, j: int, i: int, depth: float) -> int:
    kind, wall = table[j, i, KIND], table[j, i, WALL]
    if kind == S_NEST:
        # Comedo-type necrosis in the middle of some large nests.
        return NECROSIS if table[j, i, RANDOM] < 0.25 and depth > 42.0 else TUMOUR
    if kind == S_VESSEL:
        return STROMA if depth < wall else BLOOD
    if kind == S_PEARL:
        return SQUAMOUS if depth < wall else KERATIN
    return EPITHELIUM if depth < wall else LUMEN


@njit(cache=True, nogil=True)
def compartment_at(
    xw: float, yw: float, table: Floats, i0: int, j0: int, territory: int, w: World
) -> tuple[int, float, int, int]:
    """Compartment of a warped position on tissue, its depth there (um), and the structure's row and column."""
    depth, j, i = _structure_at(xw, yw, table, i0, j0, w)
    if depth > 0.0:
        return _inside(table, j, i, depth), depth, j, i
    if territory in (T_SOLID, T_SQUAMOUS):
        border = border_distance(xw, yw, w.structure_um * 0.9, w.seed + np.uint64(51))
        if border < 3.5:
            return STROMA, border, j, i
        return (TUMOUR if territory == T_SOLID else SQUAMOUS), border, j, i
    if territory == T_FAT:
        return FAT, border_distance(xw, yw, w.structure_um * 0.5, w.seed + np.uint64(52)), j, i
    if territory == T_LYMPHOID:
        return LYMPHOID, depth, j, i
    if territory == T_NECROSIS:
        return NECROSIS, depth, j, i
    if territory == T_INFLAMED:
        return INFLAMED, depth, j, i
    return STROMA, depth, j, i


@njit(cache=True, nogil=True)
def fibre_potential(x: float, y: float, w: World) -> float:
    """A height in um whose level lines are the collagen fibres."""
    wave = vnoise(x / 130.0, y / 130.0, w.seed + np.uint64(61)) * 190.0
    wave += vnoise(x / 38.0, y / 38.0, w.seed + np.uint64(62)) * 26.0
    wave += vnoise(x / 11.0, y / 11.0, w.seed + np.uint64(63)) * 4.0
    return y * w.fibre_cos - x * w.fibre_sin + wave


@njit(cache=True, nogil=True)
def fibre_direction(x: float, y: float, w: World) -> tuple[float, float]:
    """Unit vector along the fibres."""
    gx = fibre_potential(x + 2.0, y, w) - fibre_potential(x - 2.0, y, w)
    gy = fibre_potential(x, y + 2.0, w) - fibre_potential(x, y - 2.0, w)
    norm = math.sqrt(gx * gx + gy * gy) + 1e-9
    return -gy / norm, gx / norm


@njit(cache=True, nogil=True)
def fold_at(x: float, y: float, w: World) -> float:
    """1 in the middle of a fold of the section, 0 away from folds, smooth between."""
    gate = vnoise(x / 300.0, y / 300.0, w.seed + np.uint64(71))
    if gate > w.fold_share:
        return 0.0
    crease = abs(vnoise(x / 240.0, y / 240.0, w.seed + np.uint64(72)) - 0.5) * 240.0
    width = 5.0 + 9.0 * vnoise(x / 80.0, y / 80.0, w.seed + np.uint64(73))
    return max(0.0, min(1.0, 1.6 * (1.0 - crease / width)))
