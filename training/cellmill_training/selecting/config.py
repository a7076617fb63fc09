"""How tiles are chosen: the figures of the method, in one frozen record.

Source: Adjadj et al. 2025, "Towards Comprehensive Cellular Characterisation of H&E slides" (HistoPLUS), Methods,
"Building a diverse dataset with active learning". Stated there: tiles of 112 um, K = 20 clusters a slide, 2 depths x 2
feature sets x 3 scalers by cross-validated balanced accuracy on cohort-stratified folds with nested inner folds, the
two best tiles a slide and type, probability above 0.4 and BALD above the slide's 90th percentile, 5 to 20 clusters of
uncertain tiles, 50 tiles a cohort (indication), slide weights of 0.5 to 2.0. Not stated, and chosen here: widths and
training of the networks, how many members an ensemble has, how many folds, which number of clusters between 5 and 20,
and how the tiles are shared among the three methods, which the paper ran one by one.
"""

from dataclasses import dataclass

__all__ = ["SelectionConfig"]


@dataclass(frozen=True)
class SelectionConfig:
    """Figures of one selection; the defaults are the paper's where it gives any."""

    tiles_per_cohort: int = 50
    """Tiles drawn of each cohort."""
    rare_share: float = 1 / 3
    """Share of the tiles drawn from those likely to hold a rare type."""
    uncertain_share: float = 1 / 3
    """Share drawn from those on which the ensembles disagree; the rest is drawn for diversity."""
    clusters: int = 20
    """K of K-means over all tiles of a slide."""
    top_tiles: int = 2
    """Tiles of highest probability that are kept, a slide and type."""
    min_probability: float = 0.4
    """A tile is uncertain about a type only above this mean probability."""
    bald_percentile: float = 90.0
    """... and above this percentile of its slide's BALD scores."""
    uncertain_clusters: tuple[int, int] = (5, 20)
    """Least and most clusters of a slide's uncertain tiles."""
    weight_range: tuple[float, float] = (0.5, 2.0)
    """Slide weights are clipped to this."""
    members: int = 8
    """Networks of an ensemble."""
    folds: int = 4
    """Outer folds of the cross-validation."""
    inner_folds: int = 2
    """Folds inside each training part, by which the design is chosen when its accuracy is estimated."""
    hidden: tuple[tuple[int, ...], tuple[int, ...]] = ((64,), (64, 32))
    """Widths of the hidden layers at the two depths."""
    iterations: int = 60
    """Steps of L-BFGS, each over all tiles that a network learns from, at the most."""
    rare_below: float = 0.2
    """Without a list of rare types: those that at most this share of the labelled tiles holds."""
    min_positives: int = 8
    """Labelled tiles with and without a type, each, below which no classifier is made for it."""
    seed: int = 0
    """Of clusters, folds, networks and draws."""

    def __post_init__(self) -> None:
        shares = (self.rare_share, self.uncertain_share)
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError(f"rare_share and uncertain_share must be >= 0 and sum to at most 1, got {shares}.")
        for name in ("tiles_per_cohort", "clusters", "top_tiles", "members", "iterations", "min_positives"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if min(self.folds, self.inner_folds) < 2:
            raise ValueError(f"Cross-validation takes 2 folds or more, got {self.folds} and {self.inner_folds}.")
        if not 0 <= self.min_probability < 1 or not 0 <= self.bald_percentile <= 100:
            raise ValueError(
                f"min_probability must be 0 to 1 and bald_percentile 0 to 100, got {self.min_probability} and "
                f"{self.bald_percentile}."
            )
