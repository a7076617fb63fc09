"""From labels and stored embeddings to a named type head and its answers for every cell that has a vector.

In: `RefitTypesSettings`. Out: `retyped/<name>/` of the cell set, and a `Refit` that says how good the head is. The
network is not asked again.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from cellmill import __version__
from cellmill.embedding.head import TypeHead, read_vectors, retyped_tables
from cellmill.store.embeddings import EmbeddingRecord, embedding_records
from cellmill.store.identity import read_identity
from cellmill.store.layout import retyped_prefix
from cellmill.store.objects import ObjectStore
from cellmill.store.reading import finished_slides, open_cells
from cellmill.store.retyped import (
    HEAD_FILE,
    HeadRecord,
    write_head_record,
    write_retyped,
    write_weights,
)
from cellmill_schemas.ontology import Ontology, builtin_ontologies, get_ontology, load_ontology
from cellmill_schemas.retyped import retyped_schema
from cellmill_training.refit.fitting import CrossValidation, cross_validate, fit_head
from cellmill_training.refit.labels import CellLabels, LabelTable, labels_of, ontology_of_labels, read_label_table
from cellmill_training.refit.settings import RefitTypesSettings

__all__ = ["Refit", "refit_types"]

_BLOCK_UM = 200.0
"""Side of the blocks that stand for groups where all labels are of one slide."""


@dataclass(frozen=True)
class Refit:
    """A head that was fitted."""

    ontology: Ontology
    counts: dict[str, int]
    """Labelled cells of each class."""
    groups: str
    """What cells of one fold share, in words."""
    validated: CrossValidation | None
    """None where all labels lie in one place."""
    present_accuracy: float | None
    """Share of the labelled cells whose present type is the label's, where the classes are the same."""
    num_slides: int
    num_cells: int
    """Cells that have an answer."""
    num_changed: int
    """Of those, cells whose type is another than in the cell table."""
    fit_seconds: float
    seconds: float


def refit_types(settings: RefitTypesSettings) -> Refit:
    """Fit a head and write what it says.

    Raises:
        ValueError: when labels, ontology or name cannot be used; nothing is written then.
        FileNotFoundError: when there is no cell set, or no slide of it has embeddings.
    """
    started = time.monotonic()
    store = ObjectStore(settings.cells)
    identity = read_identity(store)
    if store.exists(f"{retyped_prefix(settings.name)}/{HEAD_FILE}") and not settings.replace:
        raise ValueError(f"There is a head named {settings.name!r}; give another --name, or --replace it.")
    table = read_label_table(Path(settings.labels))
    ontology = _ontology(settings, identity.ontology, table)
    records = _records(store, settings)
    vectors_of = {record.slide_id: _ids(store, record) for record in records}
    labels = labels_of(table, ontology, vectors_of, min_cells=settings.min_cells)
    vectors = _vectors(store, records, labels)
    names, groups = _groups(settings.cells, labels)
    fitting = time.monotonic()
    head, strength = fit_head(vectors, labels.classes, groups, num_classes=len(ontology), seed=settings.seed)
    validated = None
    if len(np.unique(groups)) > 1:
        validated = cross_validate(vectors, labels.classes, groups, num_classes=len(ontology), seed=settings.seed)
    fit_seconds = time.monotonic() - fitting
    counts = dict(zip(ontology.names, np.bincount(labels.classes, minlength=len(ontology)).tolist(), strict=True))
    present = _present_accuracy(settings.cells, labels, ontology)
    fitted: dict[str, Any] = {
        "labels_sha256": table.sha256,
        "num_labels": counts,
        "groups": names,
        "strength": strength,
        "seed": settings.seed,
        "cross_validation": None if validated is None else validated.to_json(ontology.names),
        "present_accuracy": None if present is None else round(present, 4),
        "code_version": __version__,
    }
    num_cells = _write(store, settings.name, head, ontology=ontology, records=records, fitted=fitted)
    changed = open_cells(settings.cells, scores=f"retyped/{settings.name}").select((~pl.col("agrees")).sum())
    return Refit(
        ontology=ontology,
        counts=counts,
        groups=names,
        validated=validated,
        present_accuracy=present,
        num_slides=len(records),
        num_cells=num_cells,
        num_changed=int(changed.collect().item()),
        fit_seconds=fit_seconds,
        seconds=time.monotonic() - started,
    )


def _ontology(settings: RefitTypesSettings, present: Ontology, table: LabelTable) -> Ontology:
    if not settings.ontology:
        return present
    if settings.ontology == "labels":
        return ontology_of_labels(table, present, name=settings.name)
    if settings.ontology.endswith(".json"):
        return load_ontology(Path(settings.ontology))
    if settings.ontology in builtin_ontologies():
        return get_ontology(settings.ontology)
    raise ValueError(
        f"--ontology must be one of {', '.join(builtin_ontologies())}, labels, or a JSON file, got "
        f"{settings.ontology!r}."
    )


def _records(store: ObjectStore, settings: RefitTypesSettings) -> list[EmbeddingRecord]:
    done = [status for status in finished_slides(store, None) if status.outcome == "done"]
    records = embedding_records(store, done, embedded_by=settings.embedded_by)
    if not records:
        job = "segment_cohort" if settings.embedded_by == "student" else "rescore_cohort"
        raise FileNotFoundError(
            f"No slide of {store.url} has embeddings of its {settings.embedded_by}; {job} --embeddings stores them."
        )
    kinds = {(record.model_digest, record.layer, record.num_dimensions) for record in records}
    if len(kinds) > 1:
        raise ValueError(
            f"The slides of {store.url} have embeddings of {len(kinds)} models or layers; store them again."
        )
    return records


def _ids(store: ObjectStore, record: EmbeddingRecord) -> npt.NDArray[np.int64]:
    pieces = [ids for ids, _ in read_vectors(store, record.embedded_by, record.slide_id)]
    return np.concatenate(pieces)


def _vectors(store: ObjectStore, records: list[EmbeddingRecord], labels: CellLabels) -> npt.NDArray[np.float64]:
    """Vectors (n, D) of the labelled cells, in the labels' order."""
    found = np.zeros((len(labels), records[0].num_dimensions))
    slide_ids = np.array(labels.slide_ids)
    for record in records:
        rows = np.flatnonzero(slide_ids == record.slide_id)
        if not len(rows):
            continue
        for ids, vectors in read_vectors(store, record.embedded_by, record.slide_id):
            place = np.clip(np.searchsorted(ids, labels.cell_ids[rows]), 0, len(ids) - 1)
            here = ids[place] == labels.cell_ids[rows]
            found[rows[here]] = vectors[place[here]]
    return found


def _groups(cells: str, labels: CellLabels) -> tuple[str, npt.NDArray[np.int64]]:
    """What is kept together in cross-validation: slides, or blocks of the one slide there is."""
    slides, groups = np.unique(np.array(labels.slide_ids), return_inverse=True)
    if len(slides) > 1:
        return "slides", groups.astype(np.int64)
    places = _joined(cells, labels, "x_um", "y_um").select("x_um", "y_um").to_numpy()
    blocks = np.floor(places / _BLOCK_UM).astype(np.int64)
    _, groups = np.unique(blocks, axis=0, return_inverse=True)
    return f"blocks of {_BLOCK_UM:.0f} um of the one slide, which are more alike than slides are", groups.reshape(-1)


def _joined(cells: str, labels: CellLabels, *columns: str) -> pl.DataFrame:
    """Columns of the labelled cells, in the labels' order."""
    wanted = pl.DataFrame({"slide_id": list(labels.slide_ids), "cell_id": labels.cell_ids}).with_row_index("row")
    slides = sorted(set(labels.slide_ids))
    table = (
        open_cells(cells, slide_ids=slides)
        .select("slide_id", "cell_id", *columns)
        .filter(pl.col("cell_id").is_in(labels.cell_ids.tolist()))
        .with_columns(pl.col("slide_id").cast(pl.String))
        .collect()
    )
    return wanted.join(table, on=["slide_id", "cell_id"], how="left").sort("row")


def _present_accuracy(cells: str, labels: CellLabels, ontology: Ontology) -> float | None:
    present = read_identity(ObjectStore(cells)).ontology
    if not set(ontology.names) <= set(present.names):
        return None
    kinds = _joined(cells, labels, "cell_type")["cell_type"].cast(pl.String).to_list()
    wanted = [ontology.names[index] for index in labels.classes.tolist()]
    return float(np.mean([kind == label for kind, label in zip(kinds, wanted, strict=True)]))


def _write(
    store: ObjectStore,
    name: str,
    head: TypeHead,
    *,
    ontology: Ontology,
    records: list[EmbeddingRecord],
    fitted: dict[str, Any],
) -> int:
    """Write weights and answers, then the record that makes them count; returns how many cells have an answer."""
    # A head that is replaced is gone before its answers are: head.json alone says that it is there.
    store.delete(f"{retyped_prefix(name)}/{HEAD_FILE}")
    store.delete_tree(retyped_prefix(name))
    weights_sha256 = write_weights(store, name, head.to_bytes())
    tables: dict[str, str] = {}
    for record in records:
        pieces = read_vectors(store, record.embedded_by, record.slide_id)
        answers = retyped_tables(head, ontology, pieces)
        tables[record.slide_id] = write_retyped(store, name, record.slide_id, answers, retyped_schema(ontology))
    first = records[0]
    write_head_record(
        store,
        HeadRecord(
            name=name,
            ontology=ontology,
            embedded_by=first.embedded_by,
            model_digest=first.model_digest,
            layer=first.layer,
            num_dimensions=first.num_dimensions,
            weights_sha256=weights_sha256,
            tables=tables,
            cells_sha256={record.slide_id: record.cells_sha256 for record in records},
            fitted=fitted,
        ),
    )
    return sum(record.num_cells for record in records)
