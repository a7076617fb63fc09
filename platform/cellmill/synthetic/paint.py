"""Stain amounts of a window: what the section holds before light passes through it.

In: a pixel window, structures, objects and their label map. Out: optical-density amounts (3, H, W) float32 of
hematoxylin, eosin and pigment (brown-red, for red cells and pigment). Slow fields (warp, fibres, folds) are evaluated
on an absolute coarse grid and interpolated; everything else is evaluated at the pixel's own centre.
"""
# Compiled functions take no keyword-only arguments, and return where a case ends:
# ruff: noqa: PLR0911, PLR0917

import numpy as np
from numba import njit

from cellmill.synthetic import architecture as arch
from cellmill.synthetic.architecture import World
from cellmill.synthetic.arrays import Codes, Floats, Singles
from cellmill.synthetic.cell_types import CYTOPLASM_EOSIN, CYTOPLASM_HEMATOXYLIN, EPITHELIAL, NEOPLASTIC
from cellmill.synthetic.noise import smoothstep, vnoise

__all__ = ["NUM_FIELDS", "coarse_fields", "paint_ground"]

F_WX, F_WY, F_FIBRE, F_DEPTH, F_FOLD, F_LOOSE, F_TERRITORY, NUM_FIELDS = range(8)


@njit(cache=True, nogil=True)
def coarse_fields(x0: int, y0: int, width: int, height: int, mpp: float, step: int, w: World) -> Floats:
    """Slow fields at the absolute nodes (multiples of `step` px) around the window: (fields, rows, columns)."""
    gx0, gy0 = x0 // step, y0 // step
    cols, rows = (x0 + width) // step - gx0 + 2, (y0 + height) // step - gy0 + 2
    out = np.empty((NUM_FIELDS, rows, cols), np.float64)
    for r in range(rows):
        for c in range(cols):
            x, y = ((gx0 + c) * step + 0.5) * mpp, ((gy0 + r) * step + 0.5) * mpp
            xw, yw = arch.warp(x, y, w)
            out[F_WX, r, c], out[F_WY, r, c] = xw - x, yw - y
            out[F_FIBRE, r, c] = arch.fibre_potential(x, y, w)
            out[F_DEPTH, r, c] = arch.tissue_depth(x, y, w)
            out[F_FOLD, r, c] = arch.fold_at(x, y, w)
            out[F_LOOSE, r, c] = vnoise(x / 85.0, y / 85.0, w.seed + np.uint64(81))
            out[F_TERRITORY, r, c] = arch.territory_at(xw, yw, w)[0]
    return out


@njit(cache=True, nogil=True)
def _mix(f: Floats, k: int, r: int, c: int, ty: float, tx: float) -> float:
    top = f[k, r, c] + tx * (f[k, r, c + 1] - f[k, r, c])
    bottom = f[k, r + 1, c] + tx * (f[k, r + 1, c + 1] - f[k, r + 1, c])
    return top + ty * (bottom - top)


@njit(cache=True, nogil=True)
def _stroma(x: float, y: float, height: float, loose: float, w: World) -> tuple[float, float]:
    """Collagen: bundles along the level lines of the potential, clefts between them."""
    along = x * w.fibre_cos + y * w.fibre_sin
    seed = w.seed
    ragged = height + 2.2 * vnoise(x / 4.5, y / 4.5, seed + np.uint64(204))
    bundle = vnoise(ragged / (2.6 * w.fibre_um), along / 34.0, seed + np.uint64(201))
    strand = vnoise(ragged / (0.9 * w.fibre_um), along / 15.0, seed + np.uint64(202))
    fine = vnoise(height / 0.8, along / 4.5, seed + np.uint64(203))
    value = 0.48 * bundle + 0.34 * strand + 0.18 * fine
    low = 0.16 + 0.30 * loose
    dense = smoothstep(low, low + 0.13, value)
    eosin = dense * (0.14 + 0.42 * value + 0.14 * (fine - 0.5)) * (1.12 - 0.45 * loose) + 0.012
    return 0.02 + 0.07 * dense * strand, eosin


@njit(cache=True, nogil=True)
def _keratin(x: float, y: float, depth: float, height: float, w: World) -> tuple[float, float]:
    """Anucleate lamellae round a pearl's middle, with white cracks and dark purple edges."""
    s = w.seed
    bend = (
        depth
        + 9.0 * vnoise(x / 17.0, y / 17.0, s + np.uint64(211))
        + 2.0 * vnoise(x / 4.0, y / 4.0, s + np.uint64(215))
    )
    lamella = vnoise(bend / 1.4, height / 22.0, s + np.uint64(212))
    broad = vnoise(bend / 6.0, height / 40.0, s + np.uint64(213))
    if 0.5 * lamella + 0.5 * broad > 0.50 + 0.42 * vnoise(x / 22.0, y / 22.0, s + np.uint64(214)):
        return 0.0, 0.015
    dark = smoothstep(0.5, 0.8, 1.0 - lamella) * smoothstep(0.35, 0.75, broad)
    return 0.08 + 0.55 * dark, 0.24 + 0.42 * (1.0 - lamella) * broad + 0.12 * dark


@njit(cache=True, nogil=True)
def _flake(x: float, y: float, height: float, w: World) -> tuple[float, float]:
    """Keratin flakes and strands that float on the glass beside the tissue: dark, textured, and no cell in them."""
    s = w.seed
    if vnoise(x / 140.0, y / 140.0, s + np.uint64(241)) < 0.66:
        return 0.0, 0.0
    along = x * w.fibre_cos + y * w.fibre_sin
    ragged = height + 5.0 * vnoise(x / 8.0, y / 8.0, s + np.uint64(242))
    sheet = vnoise(ragged / 9.0, along / 40.0, s + np.uint64(243))
    if sheet < 0.60:
        return 0.0, 0.0
    return _keratin(x, y, ragged, along, w)


@njit(cache=True, nogil=True)
def _ground(
    compartment: int,
    depth: float,
    x: float,
    y: float,
    height: float,
    loose: float,
    extra: float,
    kinds: Floats,
    w: World,
) -> tuple[float, float]:
    """(hematoxylin, eosin) of a compartment without its cells."""
    s = w.seed
    if compartment == arch.STROMA:
        if (
            -arch.RETRACTION_UM < depth < 0.0
            and vnoise(x / 16.0, y / 16.0, s + np.uint64(224)) > 0.66 + 0.1 * depth * depth / 20.0
        ):
            # Retraction: a cleft between a nest and its stroma.
            return 0.0, 0.01
        return _stroma(x, y, height, loose, w)
    if compartment == arch.KERATIN:
        return _keratin(x, y, depth, height, w)
    if compartment == arch.INFLAMED:
        h, e = _stroma(x, y, height, 0.2 + 0.8 * loose, w)
        return h + 0.01, e
    grain = vnoise(x / 1.3, y / 1.3, s + np.uint64(221))
    patch = vnoise(x / 6.0, y / 6.0, s + np.uint64(222))
    if compartment in (arch.TUMOUR, arch.EPITHELIUM, arch.SQUAMOUS):
        kind = NEOPLASTIC if compartment == arch.TUMOUR else EPITHELIAL
        even = 0.85 + 0.3 * patch + 0.5 * (grain - 0.5)
        return kinds[kind, CYTOPLASM_HEMATOXYLIN] * even, kinds[kind, CYTOPLASM_EOSIN] * even
    if compartment == arch.LYMPHOID:
        web = smoothstep(0.25, 0.7, patch)
        return 0.03 + 0.06 * web, 0.05 + 0.14 * web * (0.6 + 0.8 * grain)
    if compartment == arch.NECROSIS:
        clot = vnoise(x / 3.0, y / 3.0, s + np.uint64(223))
        dust = smoothstep(0.72, 0.95, 0.55 * grain + 0.45 * clot)
        return 0.05 + 0.05 * patch + 0.32 * dust, 0.20 + 0.22 * clot + 0.12 * (grain - 0.5)
    if compartment == arch.FAT:
        wall = smoothstep(1.9 + 1.2 * patch, 0.7, depth)
        return 0.03 * wall, 0.004 + 0.30 * wall
    if compartment == arch.BLOOD:
        return 0.01, 0.05 + 0.05 * patch
    # Lumen: empty, or filled with a pink secretion.
    filled = smoothstep(0.70, 0.8, extra) * smoothstep(0.15, 0.4, patch + 0.25 * (extra - 0.75))
    return 0.015 * filled, 0.01 + filled * (0.14 + 0.12 * patch + 0.05 * grain)


@njit(cache=True, nogil=True)
def _is_ragged_glass(depth: float, x: float, y: float, w: World) -> bool:
    if depth > 9.0:
        return False
    return depth + 9.0 * (vnoise(x / 5.0, y / 5.0, w.seed + np.uint64(231)) - 0.5) < 1.5


@njit(cache=True, nogil=True)
def paint_ground(
    x0: int,
    y0: int,
    width: int,
    height: int,
    mpp: float,
    step: int,
    fields: Floats,
    structures: Floats,
    si0: int,
    sj0: int,
    kinds: Floats,
    w: World,
) -> tuple[Singles, Codes]:
    """Stains of everything but cells: (3, H, W) amounts and (H, W) compartments."""
    stains = np.zeros((3, height, width), np.float32)
    compartments = np.zeros((height, width), np.uint8)
    gx0, gy0 = x0 // step, y0 // step
    for row in range(height):
        py = row + y0
        r = py // step - gy0
        ty = (py - (r + gy0) * step) / step
        y = (py + 0.5) * mpp
        for col in range(width):
            px = col + x0
            c = px // step - gx0
            tx = (px - (c + gx0) * step) / step
            x = (px + 0.5) * mpp
            tissue = _mix(fields, F_DEPTH, r, c, ty, tx)
            if tissue < -70.0:
                continue
            fibre, loose = _mix(fields, F_FIBRE, r, c, ty, tx), _mix(fields, F_LOOSE, r, c, ty, tx)
            if _is_ragged_glass(tissue, x, y, w):
                stains[0, row, col], stains[1, row, col] = _flake(x, y, fibre, w)
                continue
            xw, yw = x + _mix(fields, F_WX, r, c, ty, tx), y + _mix(fields, F_WY, r, c, ty, tx)
            territory = int(fields[F_TERRITORY, r, c])
            if (
                fields[F_TERRITORY, r, c + 1] != territory
                or fields[F_TERRITORY, r + 1, c] != territory
                or fields[F_TERRITORY, r + 1, c + 1] != territory
            ):
                territory, _ = arch.territory_at(xw, yw, w)
            compartment, depth, j, i = arch.compartment_at(xw, yw, structures, si0, sj0, territory, w)
            compartments[row, col] = compartment
            hema, eosin = _ground(compartment, depth, x, y, fibre, loose, structures[j, i, arch.RANDOM], kinds, w)
            stains[0, row, col], stains[1, row, col] = hema, eosin
    return stains, compartments
