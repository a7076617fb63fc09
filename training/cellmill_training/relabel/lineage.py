"""Where every label of a refined data set comes from, as two tables.

`new_labels.parquet`: one row a cell that was open: image, instance, classifier, the most probable class, its
probability, the probabilities of all of the classifier's classes, and whether the label was taken.
`images.parquet`: one row an image: split, group, and the classifiers whose training or validation cells it gave.
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cellmill_training.datasets.splitting import Split
from cellmill_training.datasets.store import LabelledDataset
from cellmill_training.relabel.relabelling import NewLabel
from cellmill_training.relabel.run import Learned, RelabelResult

__all__ = ["IMAGE_LINEAGE", "NEW_LABELS", "write_lineage"]

NEW_LABELS = pa.schema(
    [
        ("image_id", pa.string()),
        ("instance", pa.int32()),
        ("classifier", pa.string()),
        ("cell_type", pa.string()),
        ("probability", pa.float64()),
        ("class_names", pa.list_(pa.string())),
        ("probabilities", pa.list_(pa.float64())),
        ("settled", pa.bool_()),
    ]
)

IMAGE_LINEAGE = pa.schema(
    [
        ("image_id", pa.string()),
        ("source", pa.string()),
        ("split_group", pa.string()),
        ("split", pa.string()),
        ("trained", pa.list_(pa.string())),
        ("validated", pa.list_(pa.string())),
    ]
)


def write_lineage(result: RelabelResult, out: Path) -> None:
    """Write both tables into `out`, each whole or not at all."""
    classes = {one.classifier.name: one.index.class_names for one in result.learned}
    _write(_new_labels(result.new_labels, classes), out / "new_labels.parquet")
    _write(_images(result.refined, result.learned), out / "images.parquet")


def _new_labels(labels: Sequence[NewLabel], classes: dict[str, tuple[str, ...]]) -> pa.Table:
    rows = [
        {
            "image_id": label.image_id,
            "instance": label.instance,
            "classifier": label.classifier,
            "cell_type": label.cell_type,
            "probability": label.probability,
            "class_names": list(classes[label.classifier]),
            "probabilities": list(label.probabilities),
            "settled": label.settled,
        }
        for label in labels
    ]
    return pa.Table.from_pylist(rows, schema=NEW_LABELS)


def _images(refined: LabelledDataset, learned: Sequence[Learned]) -> pa.Table:
    trained, validated = _taught(learned, "train"), _taught(learned, "validation")
    rows = refined.index.select(["image_id", "source", "split_group", "split"]).to_pylist()
    for row in rows:
        row |= {"trained": trained.get(row["image_id"], []), "validated": validated.get(row["image_id"], [])}
    return pa.Table.from_pylist(rows, schema=IMAGE_LINEAGE)


def _taught(learned: Sequence[Learned], split: Split) -> dict[str, list[str]]:
    """Classifiers by the images that gave them cells of a split."""
    found: dict[str, list[str]] = {}
    for one in learned:
        for image_id in sorted(set(one.index.image_ids[one.rows[split]].tolist())):
            found.setdefault(image_id, []).append(one.classifier.name)
    return found


def _write(table: pa.Table, path: Path) -> None:
    partial = path.with_suffix(".partial")
    pq.write_table(table, partial)
    partial.replace(path)
