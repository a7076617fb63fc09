"""What a data set holds, as tables for people: nuclei by class and split, images by source and split, label origins."""

from collections import Counter
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from cellmill_training.datasets.splitting import Split
from cellmill_training.datasets.store import LabelledDataset

__all__ = ["count_classes", "print_counts"]

_SPLITS: tuple[Split, ...] = get_args(Split)


def count_classes(dataset: LabelledDataset) -> dict[str, dict[str, int]]:
    """Nuclei of each class by split: `counts[class][split]`; every class of the ontology is there.

    Nuclei of open type are counted under the classes they may be, as in "neoplastic or epithelial", or "unknown".
    """
    counts: dict[str, dict[str, int]] = {name: dict.fromkeys(_SPLITS, 0) for name in dataset.ontology.names}
    for label in dataset.labels().select(["cell_types", "split"]).to_pylist():
        name = " or ".join(label["cell_types"]) or "unknown"
        counts.setdefault(name, dict.fromkeys(_SPLITS, 0))[label["split"]] += 1
    return counts


def print_counts(dataset: LabelledDataset) -> None:
    """Print the tables, and which classes are empty."""
    console = Console()
    counts = count_classes(dataset)
    console.print(_table("nuclei", counts))
    console.print(_table("images", _by_split(dataset, "source")))
    labels = dataset.labels()
    origins = Counter(
        zip(labels.column("origin_kind").to_pylist(), labels.column("origin_by").to_pylist(), strict=True)
    )
    for (kind, by), number in sorted(origins.items()):
        console.print(f"{number:,} labels of origin {kind}:{by}", highlight=False)
    empty = [name for name in dataset.ontology.names if not any(counts[name].values())]
    if empty:
        console.print(
            f"No nucleus is known to be: {', '.join(empty)}. A model cannot learn them from this data set alone."
        )
    console.print(f"data set {dataset.name}, digest {dataset.digest[:16]}", highlight=False)
    console.print(dataset.store.url, highlight=False, soft_wrap=True)


def _by_split(dataset: LabelledDataset, column: str) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    rows: list[dict[str, Any]] = dataset.index.select([column, "split"]).to_pylist()
    for row in rows:
        counts.setdefault(row[column], dict.fromkeys(_SPLITS, 0))[row["split"]] += 1
    return counts


def _table(what: str, counts: dict[str, dict[str, int]]) -> Table:
    table = Table(what, *_SPLITS, "all")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, by_split in counts.items():
        table.add_row(name, *(f"{by_split[split]:,}" for split in _SPLITS), f"{sum(by_split.values()):,}")
    totals = [sum(by_split[split] for by_split in counts.values()) for split in _SPLITS]
    table.add_row("all", *(f"{total:,}" for total in totals), f"{sum(totals):,}", style="bold")
    return table
