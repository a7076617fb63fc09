"""Neighbourhood enrichment of spatial_points.csv by squidpy, in an environment of its own (squidpy pins much).

python spatial_squidpy.py
"""

import csv
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import squidpy

RADIUS_UM, PERMUTATIONS = 25.0, 5000


def main() -> None:
    folder = Path(__file__).parent
    rows = list(csv.DictReader((folder / "spatial_points.csv").open()))
    xy = np.array([(float(row["x"]), float(row["y"])) for row in rows])
    cells = anndata.AnnData(np.zeros((len(rows), 1)), obs=pd.DataFrame(index=[str(n) for n in range(len(rows))]))
    cells.obs["type"] = pd.Categorical([row["type"] for row in rows])
    cells.obsm["spatial"] = xy
    squidpy.gr.spatial_neighbors(cells, coord_type="generic", radius=RADIUS_UM)
    squidpy.gr.nhood_enrichment(cells, cluster_key="type", n_perms=PERMUTATIONS, seed=0, show_progress_bar=False)
    found = cells.uns["type_nhood_enrichment"]
    lines = [f"# squidpy {squidpy.__version__}", "from,to,neighbours,z"]
    for i, start in enumerate("abc"):
        for j, to in enumerate("abc"):
            lines.append(f"{start},{to},{int(found['count'][i, j])},{found['zscore'][i, j]:.6f}")
    (folder / "spatial_squidpy.csv").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
