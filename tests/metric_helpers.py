"""Made-up counts of images, for tests of what is done with counts."""

import numpy as np

from cellmill.metrics.tally import ImageTally, stacked, tally_image

__all__ = ["random_tallies"]


def random_tallies(num_images: int, seed: int = 0) -> ImageTally:
    """Images of nine cells of two types, found and typed at random."""
    rng = np.random.default_rng(seed)
    tallies: list[ImageTally] = []
    for _ in range(num_images):
        labels = np.arange(1, 10).reshape(3, 3)
        size = 10
        predicted = np.where(rng.random((3, 3)) < 0.3, 0, labels)
        truth, guess = rng.integers(0, 2, size), rng.dirichlet([1, 1], size)
        tallies.append(tally_image(labels, np.eye(2, dtype=bool)[truth], predicted, guess))
    return stacked(tallies)
