"""`embeddings/<student|teacher>/<slide_id>`: one vector a cell, written whole and bound to the cell table it is of.

In: rows in the order of their cell ids, in pieces of any size. Out: a Parquet table, then a sealed JSON record that
holds its SHA-256; the record is what 'these embeddings are there' means, so a killed writer leaves nothing that a
reader sees. The cell table and the mask are never touched. The record also holds the SHA-256 of the cell table, so that
vectors of an earlier table are never joined to a later one.
"""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from cellmill.store.layout import embedding_record_key, embeddings_key
from cellmill.store.objects import HashingFile, ObjectStore
from cellmill.store.reading import finished_slides, scan_tables
from cellmill.store.seal import sealed_json, unsealed_json
from cellmill_schemas.embeddings import embedding_schema
from cellmill_schemas.slides import SlideStatus

__all__ = [
    "ROW_GROUP_CELLS",
    "EmbeddedBy",
    "EmbeddingRecord",
    "EmbeddingWriter",
    "embedding_records",
    "open_embeddings",
    "parse_embedding_record",
    "read_embedding_record",
    "writing_embeddings",
]

EmbeddedBy = Literal["student", "teacher"]
"""Whose vectors: those of the model that made the cell set, or of a heavier one that looked at chosen cells."""

ROW_GROUP_CELLS = 16_384
_ENCODINGS = {"cell_id": "DELTA_BINARY_PACKED", "embedding.list.element": "BYTE_STREAM_SPLIT"}
"""76 bytes a cell where a dictionary takes 85, measured on 64 rectified values; no encoding is much better."""


@dataclass(frozen=True)
class EmbeddingRecord:
    """What a slide's vectors are, and of which cells."""

    slide_id: str
    embedded_by: EmbeddedBy
    model_name: str
    model_digest: str
    model_version: str
    layer: str
    """Name of the network's part whose output is pooled."""
    layer_stride_px: int
    """What one position of that output covers, in px of the model's grid."""
    layer_mpp: float
    """Of the model's grid, um/px."""
    backend: str
    """What ran the network: between two of them last digits may differ."""
    where: str
    """The condition that chose the cells; empty for all."""
    cells_sha256: str
    """Of the cell table."""
    num_dimensions: int = 0
    num_cells: int = 0
    table_sha256: str = ""

    def is_of(self, other: "EmbeddingRecord") -> bool:
        """Whether both stand for the same vectors, however they came out."""
        empty = {"num_dimensions": 0, "num_cells": 0, "table_sha256": ""}
        return replace(self, **empty) == replace(other, **empty)


class EmbeddingWriter:
    """Takes rows in the order of their cell ids."""

    def __init__(self, file: HashingFile) -> None:
        self._file = file
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float16]]] = []
        self._num_waiting = 0
        self._last_id = -1
        self.num_dimensions = 0
        """Of the vectors; 0 before the first."""
        self.num_added = 0

    def add(self, cell_ids: npt.NDArray[np.int64], vectors: npt.NDArray[np.float16]) -> None:
        """Append rows: ids (n,), above all before, and vectors (n, D)."""
        if not len(cell_ids):
            return
        self.num_dimensions = self.num_dimensions or vectors.shape[1]
        assert vectors.shape == (len(cell_ids), self.num_dimensions)
        assert cell_ids[0] > self._last_id and (np.diff(cell_ids) > 0).all(), "rows come in the order of their ids"
        self._last_id = int(cell_ids[-1])
        self._waiting.append((cell_ids, vectors))
        self._num_waiting += len(cell_ids)
        self.num_added += len(cell_ids)
        while self._num_waiting >= ROW_GROUP_CELLS:
            self._write_group(ROW_GROUP_CELLS)

    def close(self) -> None:
        """Write what waits, and the footer.

        Raises:
            ValueError: when there is nothing to write.
        """
        if self._num_waiting:
            self._write_group(self._num_waiting)
        if self._writer is None:
            raise ValueError("There is no cell to store an embedding of.")
        self._writer.close()

    def _write_group(self, num_rows: int) -> None:
        ids = np.concatenate([ids for ids, _ in self._waiting])
        vectors = np.concatenate([vectors for _, vectors in self._waiting])
        schema = embedding_schema(self.num_dimensions)
        flat = pa.array(np.ascontiguousarray(vectors[:num_rows]).ravel())
        columns = [pa.array(ids[:num_rows]), pa.FixedSizeListArray.from_arrays(flat, type=schema.field(1).type)]
        self._writer = self._writer or pq.ParquetWriter(
            self._file,
            schema,
            version="2.6",
            compression="zstd",
            compression_level=3,
            use_dictionary=False,
            column_encoding=_ENCODINGS,
            write_statistics=["cell_id"],  # pyright: ignore[reportArgumentType]
        )
        self._writer.write_table(pa.table(columns, schema=schema), row_group_size=num_rows)
        self._waiting = [(ids[num_rows:].copy(), vectors[num_rows:].copy())]
        self._num_waiting -= num_rows


@contextmanager
def writing_embeddings(store: ObjectStore, record: EmbeddingRecord) -> Generator[EmbeddingWriter]:
    """A writer of one slide's vectors; they become visible when the block ends well, else nothing does."""
    whose, slide_id = record.embedded_by, record.slide_id
    with store.publishing(embeddings_key(whose, slide_id)) as file:
        hashing = HashingFile(file)
        writer = EmbeddingWriter(hashing)
        yield writer
        writer.close()
        store.delete(embedding_record_key(whose, slide_id))  # of vectors that are replaced, before they are
    made = replace(
        record,
        num_dimensions=writer.num_dimensions,
        num_cells=writer.num_added,
        table_sha256=hashing.hexdigest(),
    )
    store.put(embedding_record_key(whose, slide_id), sealed_json(asdict(made)))


def parse_embedding_record(data: bytes) -> EmbeddingRecord:
    """A record's bytes as a record. Whether its seal holds is for `cellmill.verify` to say.

    Raises:
        ValueError: when it is none.
    """
    try:
        return EmbeddingRecord(**unsealed_json(data))
    except (TypeError, AttributeError) as error:
        raise ValueError(f"Not the record of a slide's embeddings: {error}.") from error


def read_embedding_record(store: ObjectStore, embedded_by: EmbeddedBy, slide_id: str) -> EmbeddingRecord | None:
    """What the slide's vectors are; None where there are none."""
    key = embedding_record_key(embedded_by, slide_id)
    data = store.get_many([key]).get(key)
    return None if data is None else parse_embedding_record(data)


def embedding_records(
    store: ObjectStore, statuses: Iterable[SlideStatus], *, embedded_by: EmbeddedBy
) -> list[EmbeddingRecord]:
    """Records of the slides that have vectors of the very cells they have now, by slide id."""
    cells_sha256 = {embedding_record_key(embedded_by, status.slide_id): status.cells_sha256 for status in statuses}
    records = {key: parse_embedding_record(data) for key, data in store.get_many(list(cells_sha256)).items()}
    current = [record for key, record in records.items() if record.cells_sha256 == cells_sha256[key]]
    return sorted(current, key=lambda record: record.slide_id)


def open_embeddings(
    url: str | Path, *, embedded_by: EmbeddedBy = "student", slide_ids: Iterable[str] | None = None
) -> pl.LazyFrame:
    """Vectors of the cells of a cell set: slide_id (Categorical), cell_id, embedding (Array of Float16).

    Nothing is read before `collect`. Join it to `open_cells` on slide_id and cell_id. Slides without vectors, or with
    vectors of cells they have no longer, have no rows.

    Args:
        url: what was given as --out.
        embedded_by: `student`, what segment_cohort --embeddings stored, or `teacher`, what rescore_cohort did.
        slide_ids: only these slides.

    Raises:
        FileNotFoundError: when there is no cell set, a slide asked for is not done, or no slide has such vectors.
        ValueError: when slides have vectors of different models or layers.
    """
    store = ObjectStore(url)
    done = [status for status in finished_slides(store, slide_ids) if status.outcome == "done"]
    records = embedding_records(store, done, embedded_by=embedded_by)
    if not records:
        job = "segment_cohort" if embedded_by == "student" else "rescore_cohort"
        raise FileNotFoundError(
            f"None of the {len(done)} slides of {store.url} has embeddings of its {embedded_by}; run {job} with "
            "--embeddings."
        )
    if len({(record.model_digest, record.layer, record.num_dimensions) for record in records}) > 1:
        raise ValueError(
            f"The slides of {store.url} have embeddings of different models or layers, which cannot be compared; "
            "store them again with one model."
        )
    frames = [
        scan_tables(store, [embeddings_key(embedded_by, record.slide_id)]).select(
            pl.lit(record.slide_id, dtype=pl.Categorical).alias("slide_id"), "cell_id", "embedding"
        )
        for record in records
    ]
    return pl.concat(frames)
