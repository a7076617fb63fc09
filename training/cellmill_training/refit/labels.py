"""Which type cells have by somebody's word: a table of cell ids and types, or the corrections of `import_annotations`.

In: a CSV or Parquet file, or the folder of a data set. Out: `CellLabels`, every one of a cell that has a vector.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from cellmill_schemas.ontology import CellClass, Ontology

__all__ = ["CellLabels", "labels_of", "ontology_of_labels", "read_label_table"]

_CORRECTIONS = "corrections.parquet"
_SEEN_BY_A_PERSON = ("confirmed", "retyped", "redrawn")
"""Changes that say which type a cell of the cell set has: others were added, deleted, or not looked at."""

_PALETTE = ((213, 60, 40), (0, 114, 178), (0, 158, 115), (230, 159, 0), (204, 121, 167), (86, 180, 233), (240, 228, 66))


@dataclass(frozen=True)
class CellLabels:
    """Labelled cells; entry k of each field is one."""

    slide_ids: tuple[str, ...]
    cell_ids: npt.NDArray[np.int64]
    classes: npt.NDArray[np.int64]
    """Indices in the ontology."""

    def __len__(self) -> int:
        return len(self.cell_ids)


@dataclass(frozen=True)
class LabelTable:
    """Labels as a file has them: columns slide_id (may be null), cell_id, type."""

    rows: pl.DataFrame
    sha256: str
    """Of the file."""


def read_label_table(path: Path) -> LabelTable:
    """Labels of a file or a data set.

    Args:
        path: a CSV or Parquet file with the columns cell_id and type, and slide_id unless the ids say which cell they
            are by themselves; or the folder of a data set that `import_annotations` made.

    Raises:
        ValueError: when there is no such file or a column is missing, or two rows contradict each other.
    """
    file = path / _CORRECTIONS if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"--labels must be a CSV or Parquet file, or the folder of a data set with {_CORRECTIONS}; {path} is none."
        )
    try:
        rows = pl.read_csv(file, infer_schema_length=None) if file.suffix == ".csv" else pl.read_parquet(file)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"--labels {path} cannot be read: {error}.") from error
    if path.is_dir() or {"change", "type_after"} <= set(rows.columns):
        rows = rows.filter(
            pl.col("change").is_in(_SEEN_BY_A_PERSON) & pl.col("cell_id").is_not_null() & (pl.col("type_after") != "")
        ).rename({"type_after": "type"})
    missing = [name for name in ("cell_id", "type") if name not in rows.columns]
    if missing:
        raise ValueError(f"--labels {path} has no column {', '.join(missing)}; it has {', '.join(rows.columns)}.")
    if "slide_id" not in rows.columns:
        rows = rows.with_columns(pl.lit(None, pl.String).alias("slide_id"))
    rows = rows.select(
        pl.col("slide_id").cast(pl.String), pl.col("cell_id").cast(pl.Int64), pl.col("type").cast(pl.String)
    )
    if rows.select(pl.col("cell_id", "type").null_count()).sum_horizontal().item():
        raise ValueError(f"--labels {path} has rows without a cell_id or a type.")
    rows = rows.unique(maintain_order=True)
    twice = rows.filter(pl.struct("slide_id", "cell_id").is_duplicated())
    if twice.height:
        cell_id, kinds = twice["cell_id"][0], twice.filter(pl.col("cell_id") == twice["cell_id"][0])["type"].to_list()
        raise ValueError(f"--labels {path} gives {twice.height} rows to cells that have another: {cell_id} is {kinds}.")
    return LabelTable(rows, hashlib.sha256(file.read_bytes()).hexdigest())


def ontology_of_labels(table: LabelTable, known: Ontology, *, name: str) -> Ontology:
    """An ontology of just the types that occur: the known ones in their order, then new ones by name."""
    found = table.rows["type"].unique().to_list()
    classes: dict[str, CellClass] = {}
    new: list[str] = []
    for label in sorted(found):
        try:
            index = known.index(label)
        except KeyError:
            new.append(label)
        else:
            classes[known.names[index]] = known.classes[index]
    ordered = [classes[kind] for kind in known.names if kind in classes]
    ordered += [CellClass(label, _PALETTE[place % len(_PALETTE)], ()) for place, label in enumerate(new)]
    return Ontology(name, tuple(ordered))


def labels_of(
    table: LabelTable, ontology: Ontology, ids: dict[str, npt.NDArray[np.int64]], *, min_cells: int
) -> CellLabels:
    """The labels as classes of an ontology, each of a cell with a vector.

    Args:
        table: the labels.
        ontology: the classes wanted.
        ids: cells with vectors, by slide.
        min_cells: labelled cells that each class must have.

    Raises:
        ValueError: when a type is not in the ontology, a cell has no vector or is in several slides, or a class has too
            few cells; each time with the first of them and how many there are.
    """
    rows = table.rows
    unknown = Counter(kind for kind in rows["type"].to_list() if not _is_in(ontology, kind))
    if unknown:
        raise ValueError(
            f"{sum(unknown.values())} labels are of types that ontology {ontology.name!r} does not have: "
            f"{', '.join(sorted(unknown))}. It has {', '.join(ontology.names)}; give another --ontology, or "
            "--ontology labels for just the types that occur."
        )
    slide_ids = _placed(rows, ids)
    classes = np.array([ontology.index(kind) for kind in rows["type"].to_list()], np.int64)
    counts = np.bincount(classes, minlength=len(ontology))
    poor = [
        f"{name} has {count}" for name, count in zip(ontology.names, counts.tolist(), strict=True) if count < min_cells
    ]
    if poor or len(ontology) < 2:
        raise ValueError(
            f"Each class needs at least {min_cells} labelled cells, and there must be two classes or more: "
            f"{', '.join(poor) or 'there is one'}. Label more cells of it, or take it out of the labels and of the "
            "ontology (--ontology labels takes just the types that occur)."
        )
    return CellLabels(slide_ids, rows["cell_id"].to_numpy().astype(np.int64), classes)


def _is_in(ontology: Ontology, kind: str) -> bool:
    try:
        ontology.index(kind)
    except KeyError:
        return False
    return True


def _placed(rows: pl.DataFrame, ids: dict[str, npt.NDArray[np.int64]]) -> tuple[str, ...]:
    """The slide of each label."""
    known = pl.concat(
        pl.DataFrame({"cell_id": cell_ids, "found_in": slide_id}, schema={"cell_id": pl.Int64, "found_in": pl.String})
        for slide_id, cell_ids in ids.items()
    )
    numbered = rows.with_row_index("row")
    placed = numbered.join(known, on="cell_id", how="left", maintain_order="left")
    placed = placed.filter(pl.col("slide_id").is_null() | (pl.col("slide_id") == pl.col("found_in")))
    absent = numbered.join(placed.filter(pl.col("found_in").is_not_null()), on="row", how="anti")
    if absent.height:
        slide = absent["slide_id"][0]
        raise ValueError(
            f"{absent.height} of {rows.height} labelled cells have no stored embedding, the first is "
            f"{absent['cell_id'][0]}{f' of slide {slide}' if slide else ''}. Are the labels of this cell set, and does "
            "every slide have embeddings?"
        )
    if placed.height > rows.height:
        doubtful = placed.filter(pl.col("row").is_duplicated())["cell_id"][0]
        raise ValueError(f"Cell {doubtful} is in more than one slide; give the labels a column slide_id.")
    return tuple(placed.sort("row")["found_in"].to_list())
