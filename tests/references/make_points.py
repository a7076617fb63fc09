"""The fixed case of the spatial statistics: clustered and regular points of three types in an L-shaped window.

    python make_points.py > spatial_points.csv

`spatial_spatstat.R` and `spatial_squidpy.py` compute the reference numbers from it, each with a library of its own.
"""

import sys

import numpy as np

OUTLINE = [(0, 0), (1000, 0), (1000, 400), (400, 400), (400, 900), (0, 900)]  # um, as in spatial_spatstat.R


def main() -> None:
    rng = np.random.default_rng(20261121)
    parents = rng.uniform((0, 0), (1000, 900), (60, 2))
    clustered = parents[rng.integers(0, 60, 700)] + rng.normal(0, 25, (700, 2))
    beside = parents[rng.integers(0, 60, 300)] + rng.normal(0, 60, (300, 2))
    even = rng.uniform((0, 0), (1000, 900), (500, 2))
    sys.stdout.write("x,y,type\n")
    for name, points in (("a", clustered), ("b", beside), ("c", even)):
        # Off the hundredths: no cell lies exactly a radius from the border, where libraries may differ.
        x, y = np.round(points, 2).T + 0.003
        inside = (x > 0) & (y > 0) & (x < 1000) & (y < 900) & ((x < 400) | (y < 400))
        for x_um, y_um in zip(x[inside].tolist(), y[inside].tolist(), strict=True):
            sys.stdout.write(f"{x_um:.3f},{y_um:.3f},{name}\n")


if __name__ == "__main__":
    main()
