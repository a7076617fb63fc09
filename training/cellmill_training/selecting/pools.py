"""What each method proposes of one slide: a tile of every cluster, the likeliest holders of rare types, doubtful tiles.

Rows are those of the slide's tiles. Everything follows from features, scores and the seed.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from cellmill_training.selecting.config import SelectionConfig
from cellmill_training.selecting.uncertainty import Uncertainty, uncertain_rows

__all__ = ["SlidePools", "clustered", "num_uncertain_clusters", "pools_of"]

_TRIES = 4
"""Starts of K-means, of which the best is kept."""


@dataclass(frozen=True)
class SlidePools:
    """Proposed rows of one slide's tiles."""

    clusters: npt.NDArray[np.int32]  # (n,) cluster of every tile
    diverse: npt.NDArray[np.int64]  # one row a cluster
    rare: Mapping[str, npt.NDArray[np.int64]]
    """By type: the likeliest rows first."""
    uncertain: Mapping[str, npt.NDArray[np.int64]]
    """By type: representatives of clusters of uncertain rows."""


def pools_of(
    features: npt.NDArray[np.float32],
    scores: Mapping[str, Uncertainty],
    config: SelectionConfig,
    *,
    seed: int,
    taken: npt.NDArray[np.bool_] | None = None,
) -> SlidePools:
    """Propose rows of a slide.

    Args:
        features: (n, D) of all its tiles, scaled.
        scores: of all its tiles, by rare type.
        config: figures of the method.
        seed: of this slide.
        taken: (n,) tiles that were labelled before: they count in clusters and percentiles, and are not proposed.
    """
    taken = np.zeros(len(features), np.bool_) if taken is None else taken
    rng = np.random.default_rng(seed)
    clusters, _ = clustered(features, config.clusters, seed=seed)
    free = np.flatnonzero(~taken)
    diverse = [
        int(rng.choice(rows))
        for cluster in range(int(clusters.max(initial=-1)) + 1)
        if len(rows := free[clusters[free] == cluster])
    ]
    rare: dict[str, npt.NDArray[np.int64]] = {}
    uncertain: dict[str, npt.NDArray[np.int64]] = {}
    for name, found in scores.items():
        order = free[np.argsort(-found.probability[free], kind="stable")]
        rare[name] = order[: config.top_tiles]
        rows = uncertain_rows(found, min_probability=config.min_probability, bald_percentile=config.bald_percentile)
        uncertain[name] = _representatives(features, rows[~taken[rows]], config, seed=seed)
    return SlidePools(clusters, np.array(diverse, np.int64), rare, uncertain)


def clustered(
    features: npt.NDArray[np.float32], num_clusters: int, *, seed: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """Cluster of each row (n,), and the clusters' centres; at most one cluster a row."""
    if not len(features):
        return np.zeros(0, np.int32), np.zeros((0, features.shape[1]))
    # scikit-learn's stub knows n_init="auto" only.
    model = KMeans(min(num_clusters, len(features)), n_init=_TRIES, random_state=seed)  # pyright: ignore[reportArgumentType]
    with warnings.catch_warnings(), threadpool_limits(1):  # one thread: sums, and so clusters, are then always the same
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct tiles than clusters: blank or repeated
        labels = model.fit_predict(features.astype(np.float64))
    return np.asarray(labels, np.int32), np.asarray(model.cluster_centers_, np.float64)


def num_uncertain_clusters(num_tiles: int, bounds: tuple[int, int]) -> int:
    """Half as many clusters as tiles, within the bounds, and never more than tiles."""
    return min(num_tiles, max(bounds[0], min(bounds[1], num_tiles // 2)))


def _representatives(
    features: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], config: SelectionConfig, *, seed: int
) -> npt.NDArray[np.int64]:
    """Of each cluster of the rows the one nearest to its centre."""
    if not len(rows):
        return rows
    labels, centres = clustered(features[rows], num_uncertain_clusters(len(rows), config.uncertain_clusters), seed=seed)
    squared = ((features[rows] - centres[labels]) ** 2).sum(axis=1)
    nearest = [rows[labels == label][np.argmin(squared[labels == label])] for label in np.unique(labels)]
    return np.sort(np.array(nearest, np.int64))
