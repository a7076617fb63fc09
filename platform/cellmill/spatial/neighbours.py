"""How cells of one type lie to those of another: distances, counts within a radius, Ripley's cross-K, enrichment.

Pure functions of points and a window. Every answer is a table over ordered pairs of types (from, to).
"""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.spatial import KDTree

from cellmill.spatial.pairs import count_pairs, list_pairs
from cellmill.spatial.points import CellPoints
from cellmill.spatial.windows import Window, boundary_distance_um

__all__ = ["CrossK", "Enrichment", "NearestDistances", "cross_k", "nearest_distances", "neighbourhood_enrichment"]


@dataclass(frozen=True)
class NearestDistances:
    """Distances from each cell of one type to the nearest other cell of another, in um; NaN where there is none."""

    mean_um: NDArray[np.float64]  # (T, T)
    median_um: NDArray[np.float64]  # (T, T)


def nearest_distances(cells: CellPoints) -> NearestDistances:
    """Nearest-neighbour distances between types. No edge correction: near a border the nearest may lie beyond it."""
    num_types = len(cells.names)
    mean, median = np.full((2, num_types, num_types), np.nan)
    groups = [cells.xy_um[cells.types == index] for index in range(num_types)]
    for to, targets in enumerate(groups):
        if not len(targets):
            continue
        tree = KDTree(targets)
        for start, points in enumerate(groups):
            if start == to and len(targets) < 2:
                continue
            if len(points):
                # The nearest of its own type is the cell itself.
                found = tree.query(points, k=2)[0][:, 1] if start == to else tree.query(points)[0]
                mean[start, to], median[start, to] = found.mean(), np.median(found)
    return NearestDistances(mean, median)


@dataclass(frozen=True)
class CrossK:
    """Ripley's cross-K with border correction; NaN where no cell is far enough from the border, or a type has none."""

    radii_um: NDArray[np.float64]  # (R,)
    num_from: NDArray[np.int64]  # (T, R), cells at least the radius away from the border
    mean_within: NDArray[np.float64]  # (T, T, R), cells `to` within the radius of such a cell
    k_um2: NDArray[np.float64]  # (T, T, R), mean_within over the density of `to`

    @property
    def l_minus_r_um(self) -> NDArray[np.float64]:
        """Besag's L less the radius: 0 without any relation, above 0 where `to` gathers around `from`."""
        return np.sqrt(self.k_um2 / np.pi) - self.radii_um


def cross_k(cells: CellPoints, window: Window, *, radii_um: NDArray[np.float64]) -> CrossK:
    """K_ij(r) = A / n_j x mean over cells of type i, at least r from the border, of cells of type j within r.

    Border correction (Ripley 1988; Baddeley, Rubak and Turner 2015, section 7.4): a cell is asked only at radii for
    which its whole disc lies in the window, where nothing is missing. It holds for windows of any shape, with holes
    too, and costs cells near the border. A cell is not its own neighbour.

    Args:
        cells: the cells in the window.
        window: the window they lie in.
        radii_um: ascending radii (R,).
    """
    num_types, num_radii = len(cells.names), len(radii_um)
    if num_radii == 0 or not (np.diff(radii_um, prepend=0.0) > 0).all():
        raise ValueError(f"Radii must be positive and ascending, got {radii_um.tolist()}.")
    border_um = boundary_distance_um(window, cells.xy_um, at_most_um=float(radii_um[-1]) * 1.001)
    num_radii_of_cell = np.searchsorted(radii_um, border_um, side="right").astype(np.int64)
    pairs = count_pairs(
        cells.xy_um, cells.types, num_types=num_types, radii_um=radii_um, num_radii_of_cell=num_radii_of_cell
    )
    reaching = np.zeros((num_types, num_radii + 1), np.int64)  # how many radii each cell takes part in
    np.add.at(reaching, (cells.types, num_radii_of_cell), 1)
    num_from = np.cumsum(reaching[:, ::-1], axis=1)[:, ::-1][:, 1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_within = pairs / num_from[:, None, :]
        k_um2 = mean_within * window.outline.area / cells.counts()[None, :, None]
    k_um2[~np.isfinite(k_um2)] = np.nan
    return CrossK(radii_um, num_from, mean_within, k_um2)


@dataclass(frozen=True)
class Enrichment:
    """Neighbours against chance; NaN where chance leaves nothing to compare with."""

    observed: NDArray[np.int64]  # (T, T), ordered pairs of neighbours
    expected: NDArray[np.float64]  # (T, T), their mean over permutations
    z: NDArray[np.float64]  # (T, T), (observed - expected) / standard deviation over permutations


def neighbourhood_enrichment(
    cells: CellPoints, *, radius_um: float, num_permutations: int, seed: int | list[int]
) -> Enrichment:
    """How much more often types are neighbours than if types were dealt out anew to the same positions.

    Neighbours are cells no further apart than `radius_um`. The null shuffles types over all positions (as squidpy's
    nhood_enrichment; Palla et al. 2022), so it also sees that types keep to compartments of their own. The same seed
    gives the same answer.
    """
    num_types = len(cells.names)
    pairs = list_pairs(cells.xy_um, radius_um=radius_um)
    observed = _type_pairs(pairs, cells.types, num_types)
    total, squares = np.zeros((2, num_types, num_types), np.float64)
    rng = np.random.default_rng(seed)
    types = cells.types.copy()
    for _ in range(num_permutations):
        rng.shuffle(types)
        # Moments of the difference: the counts themselves are large and alike.
        change = (_type_pairs(pairs, types, num_types) - observed).astype(np.float64)
        total += change
        squares += change**2
    mean = total / num_permutations
    spread = np.sqrt(np.maximum(squares / num_permutations - mean**2, 0.0))
    with np.errstate(invalid="ignore", divide="ignore"):
        z = np.where(spread > 0, -mean / spread, np.nan)
    return Enrichment(observed, observed + mean, z)


def _type_pairs(pairs: NDArray[np.int32], types: NDArray[np.int16], num_types: int) -> NDArray[np.int64]:
    """Ordered pairs of neighbours by type (T, T), from unordered ones."""
    once = _tally(pairs, types, num_types)
    return once + once.T


@njit(cache=True, nogil=True)
def _tally(pairs: NDArray[np.int32], types: NDArray[np.int16], num_types: int) -> NDArray[np.int64]:
    counts = np.zeros((num_types, num_types), np.int64)
    for n in range(pairs.shape[0]):
        counts[types[pairs[n, 0]], types[pairs[n, 1]]] += 1
    return counts
