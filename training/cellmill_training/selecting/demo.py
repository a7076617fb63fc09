"""How much of a rare type select-tiles finds, against tiles chosen at random and against diversity alone.

    python -m cellmill_training.selecting.demo --out /tmp/select --seeds 0 1 2 3 4

Per seed: a cohort of synthetic slides on which neutrophils are rare (`rare_cohort`), labelled tiles of other slides in
which they were sought, one selection as the job makes it, one for diversity only. Prints rare cells per tile and the
share of tiles that hold any; what random choice gives is the mean over all tiles it could choose from.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from cellmill_schemas.ontology import get_ontology
from cellmill_training.datasets.store import write_dataset
from cellmill_training.selecting.encoding import tile_px
from cellmill_training.selecting.output import TILES_NAME
from cellmill_training.selecting.rare_cohort import RARE_TYPE, cells_in_tiles, labelled_tiles, write_rare_cohort
from cellmill_training.selecting.run import select_tiles
from cellmill_training.selecting.settings import SelectTilesSettings

__all__ = ["Outcome", "RareDemo", "rehearse"]


@dataclass(frozen=True)
class RareDemo:
    """Sizes of one rehearsal."""

    num_slides: int = 5
    side_mm: float = 1.0
    share: float = 0.05
    """Of territories that are inflamed, the only home of neutrophils."""
    num_labelled: int = 160
    labelled_share: float = 0.25
    """The same of the labelled tiles: in those the type was sought, as in half of the paper's first ones."""
    num_tiles: int = 20


@dataclass(frozen=True)
class Outcome:
    """Figures of one selection: rare cells per tile, and share of tiles with at least one."""

    seed: int
    method: str
    num_tiles: int
    cells_per_tile: float
    tiles_with: float


def rehearse(folder: Path, demo: RareDemo, *, seed: int) -> list[Outcome]:
    """Make a cohort, choose, count."""
    truth = write_rare_cohort(folder, num_slides=demo.num_slides, side_mm=demo.side_mm, share=demo.share, seed=seed)
    if not (folder / "labelled" / "index").is_dir():
        images = labelled_tiles(num_tiles=demo.num_labelled, side_px=tile_px(), share=demo.labelled_share, seed=seed)
        write_dataset(folder / "labelled", images, ontology=get_ontology("refined7"))
    outcomes: list[Outcome] = []
    for method, rare, uncertain in (("select-tiles", 1 / 3, 1 / 3), ("diversity only", 0.0, 0.0)):
        out = folder / method.replace(" ", "-")
        report = select_tiles(
            SelectTilesSettings(
                slides=(str(folder / "slides"),),
                out=str(out),
                labelled=(str(folder / "labelled"),),
                rare_types=(RARE_TYPE,) if rare else (),
                tiles_per_cohort=demo.num_tiles,
                rare_share=rare,
                uncertain_share=uncertain,
                features=str(folder / "features"),
                num_workers=1,
                replace=True,
                seed=seed,
            )
        )
        for one in report.selection.classifiers:
            print(f"{one.design}: balanced accuracy {one.nested_accuracy:.3f}, {one.num_present} tiles with")  # noqa: T201
        chosen = pq.read_table(out / TILES_NAME).to_pylist()
        counts = np.concatenate(
            [
                cells_in_tiles(
                    truth[row["slide_id"]], np.array([[row["tile_column"], row["tile_row"]]]), tile_px=tile_px()
                )
                for row in chosen
            ]
        )
        outcomes.append(_outcome(seed, method, counts))
        drawn_for = np.array([row["drawn_for"] for row in chosen])
        if rare:
            outcomes += [
                _outcome(seed, f"  drawn as {part}", counts[drawn_for == part]) for part in np.unique(drawn_for)
            ]
    everything = [
        cells_in_tiles(truth[path.name.rsplit("-", 1)[0]], _places(path), tile_px=tile_px())
        for path in sorted((folder / "features").glob("*.npz"))
    ]
    return [*outcomes, _outcome(seed, "random", np.concatenate(everything))]


def _places(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as file:
        return file["tiles"]


def _outcome(seed: int, method: str, counts: np.ndarray) -> Outcome:
    return Outcome(seed, method, len(counts), float(counts.mean()), float((counts > 0).mean()))


def _rehearsed(folder: Path, seed: int) -> list[Outcome]:
    """The outcomes of a seed, kept in its folder: a seed that is done is not done again."""
    path = folder / "outcomes.json"
    if not path.is_file():
        outcomes = rehearse(folder, RareDemo(), seed=seed)
        path.write_text(json.dumps([asdict(one) for one in outcomes], indent=1), encoding="utf-8")
    return [Outcome(**document) for document in json.loads(path.read_bytes())]


def main() -> None:
    """Rehearse for every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    given = parser.parse_args()
    outcomes = [one for seed in given.seeds for one in _rehearsed(given.out / f"seed{seed}", seed)]
    for method in dict.fromkeys(one.method for one in outcomes):
        rows = [one for one in outcomes if one.method == method]
        cells, tiles = (np.array([getattr(one, name) for one in rows]) for name in ("cells_per_tile", "tiles_with"))
        print(  # noqa: T201
            f"{method:24} {np.mean([one.num_tiles for one in rows]):7.1f} tiles  "
            f"cells a tile {cells.mean():6.2f} (sd {cells.std(ddof=min(1, len(rows) - 1)):.2f})  "
            f"tiles with any {tiles.mean():.3f} (sd {tiles.std(ddof=min(1, len(rows) - 1)):.3f})"
        )


if __name__ == "__main__":
    main()
