"""Hash noise: numbers that depend on an absolute position and a seed and on nothing else.

In: lattice indices or positions in any unit, a 64-bit seed. Out: hashes and smooth values in [0, 1). Every texture and
every cell of the synthetic tissue comes from here, which is why any window of a slide shows the same pixels.
No fast-math and no libm calls in these kernels: the same inputs give the same bits wherever a window starts.
"""

import math

import numpy as np
from numba import njit

__all__ = ["gauss", "hash2", "smoothstep", "unit", "vnoise"]

_K1 = np.uint64(0x9E3779B97F4A7C15)
_K2 = np.uint64(0xC2B2AE3D27D4EB4F)
_K3 = np.uint64(0xBF58476D1CE4E5B9)
_K4 = np.uint64(0x94D049BB133111EB)
_S29, _S32, _S31 = np.uint64(29), np.uint64(32), np.uint64(31)
_S40 = np.uint64(40)
_UNIT = 1.0 / (1 << 24)
_LOW16 = np.uint64(0xFFFF)


@njit(cache=True, nogil=True)
def hash2(ix: int, iy: int, seed: np.uint64) -> np.uint64:
    """64 well mixed bits of the lattice point (ix, iy) under `seed` (uint64)."""
    h = np.uint64(np.int64(ix)) * _K1 + np.uint64(np.int64(iy)) * _K2 + np.uint64(seed)
    h = (h ^ (h >> _S29)) * _K3
    h = (h ^ (h >> _S32)) * _K4
    return h ^ (h >> _S31)


@njit(cache=True, nogil=True)
def unit(h: np.uint64, salt: int) -> float:
    """The `salt`-th number in [0, 1) of a hash: cheap re-mixing, so one hash serves many draws."""
    g = (np.uint64(h) + np.uint64(salt) * _K2) * _K3
    g = (g ^ (g >> _S29)) * _K4
    return float(g >> _S40) * _UNIT


@njit(cache=True, nogil=True)
def gauss(h: np.uint64, salt: int) -> float:
    """The `salt`-th roughly normal number of a hash: twelve-uniform sum's cheaper cousin, four 16-bit uniforms.

    Bounded at about 3.46 standard deviations, which is what sizes need: no absurd outlier.
    """
    g = (np.uint64(h) + np.uint64(salt) * _K1) * _K4
    g = (g ^ (g >> _S29)) * _K3
    g = g ^ (g >> _S32)
    total = (g & _LOW16) + ((g >> np.uint64(16)) & _LOW16) + ((g >> _S32) & _LOW16) + (g >> np.uint64(48))
    return (float(total) / 65536.0 - 2.0) * 1.7320508075688772


@njit(cache=True, nogil=True)
def smoothstep(low: float, high: float, value: float) -> float:
    """0 below `low`, 1 above `high`, smooth between."""
    t = (value - low) / (high - low)
    if t <= 0.0:
        return 0.0
    if t >= 1.0:
        return 1.0
    return t * t * (3.0 - 2.0 * t)


@njit(cache=True, nogil=True)
def _corner(ix: int, iy: int, seed: np.uint64) -> float:
    h = np.uint64(ix) * _K1 + np.uint64(iy) * _K2 + seed
    h = (h ^ (h >> _S29)) * _K3
    h = h ^ (h >> _S32)
    return float(np.int64((h * _K4) >> _S40)) * _UNIT


@njit(cache=True, nogil=True)
def vnoise(x: float, y: float, seed: np.uint64) -> float:
    """Value noise in [0, 1): random values on the integer lattice, smoothly interpolated."""
    fx, fy = math.floor(x), math.floor(y)
    ix, iy = int(fx), int(fy)
    tx, ty = x - fx, y - fy
    tx, ty = tx * tx * (3.0 - 2.0 * tx), ty * ty * (3.0 - 2.0 * ty)
    s = np.uint64(seed)
    a, b = _corner(ix, iy, s), _corner(ix + 1, iy, s)
    c, d = _corner(ix, iy + 1, s), _corner(ix + 1, iy + 1, s)
    top, bottom = a + tx * (b - a), c + tx * (d - c)
    return top + ty * (bottom - top)
