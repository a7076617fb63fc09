"""Shards of a data set: Parquet files with a row group an image, written as images come, read one image at a time."""

import secrets
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cellmill.store.objects import ObjectStore
from cellmill_schemas.datasets import IMAGE_SCHEMA, INDEX_SCHEMA
from cellmill_schemas.ontology import Ontology
from cellmill_training.datasets.labelled_image import LabelledImage
from cellmill_training.datasets.rows import decode_row, encode_row, table_of_row
from cellmill_training.datasets.splitting import Split

__all__ = ["SHARD_BYTES", "SHARD_IMAGES", "ShardReader", "write_shards"]

SHARD_IMAGES = 512
SHARD_BYTES = 256 << 20
"""Of encoded rows, whichever comes first. PanNuke is about 16 shards: a few workers can share the reading."""

_INDEX_COLUMNS = [name for name in INDEX_SCHEMA.names if name in IMAGE_SCHEMA.names]


def write_shards(
    store: ObjectStore,
    images: Iterable[LabelledImage],
    *,
    ontology: Ontology,
    splits: Mapping[str, Split] | None,
) -> list[dict[str, Any]]:
    """Write the images into new shards; returns their index rows, still without split.

    Raises:
        ValueError: naming the image whose id came before, whose group has no split or whose label has no class.
    """
    index: list[dict[str, Any]] = []
    seen: set[str] = set()
    encoded = (_checked(image, ontology, splits, seen) for image in images)
    row = next(encoded, None)
    while row is not None:
        # A name of its own for each shard: two writers, or a writer's second try, never meet.
        key = f"shards/{secrets.token_hex(8)}.parquet"
        with store.publishing(key) as file, _writer(file, ontology) as writer:
            num_images = num_bytes = 0
            while row is not None and num_images < SHARD_IMAGES and num_bytes < SHARD_BYTES:
                writer.write_table(table_of_row(row))
                place = {"num_cells": len(row["labels"]), "shard": key, "row_group": num_images}
                index.append({name: row[name] for name in _INDEX_COLUMNS} | place)
                num_images += 1
                num_bytes += len(row["image_png"]) + len(row["instances"])
                row = next(encoded, None)
    return index


def _checked(
    image: LabelledImage, ontology: Ontology, splits: Mapping[str, Split] | None, seen: set[str]
) -> dict[str, Any]:
    if image.image_id in seen:
        raise ValueError(f"Image id {image.image_id!r} comes twice; give each image of {image.source!r} its own.")
    if splits is not None and image.split_group not in splits:
        raise ValueError(f"Image {image.image_id!r} is of group {image.split_group!r}, which has no split.")
    seen.add(image.image_id)
    return encode_row(image, ontology)


@contextmanager
def _writer(file: Any, ontology: Ontology) -> Generator[pq.ParquetWriter]:
    schema = IMAGE_SCHEMA.with_metadata({"cellmill_ontology": f"{ontology.name} {ontology.digest}"})
    with pq.ParquetWriter(
        file,
        schema,
        # A PNG is compressed already; a label image's runs are what zstd is good at.
        compression={"image_png": "none"} | dict.fromkeys(_other_columns(), "zstd"),  # pyright: ignore[reportArgumentType]
        use_dictionary=False,
        write_statistics=False,  # pyright: ignore[reportArgumentType]
    ) as writer:
        yield writer


def _other_columns() -> list[str]:
    label = "labels.list.element"
    nested = ["cell_types.list.element", "origin_kind", "origin_by", "origin_probability"]
    flat = [name for name in IMAGE_SCHEMA.names if name not in ("image_png", "labels")]
    return flat + [f"{label}.{name}" for name in nested]


class ShardReader:
    """Reads single images; the footer of each shard is read once."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._footers: dict[str, pq.FileMetaData] = {}

    def table(self, shard: str, row_group: int) -> pa.Table:
        """One row.

        Raises:
            ValueError: when the shard is missing or damaged, naming it.
        """
        with self._explaining(shard), self._store.open_random(shard) as source:
            file = pq.ParquetFile(source, metadata=self._footers.get(shard))
            self._footers[shard] = file.metadata
            return file.read_row_group(row_group)

    def read(self, shard: str, row_group: int) -> LabelledImage:
        """One image."""
        (row,) = self.table(shard, row_group).to_pylist()
        with self._explaining(shard):
            return decode_row(row)

    def labels(self, index: pa.Table) -> pa.Table:
        """One row a nucleus of the index's images, by image and instance."""
        table = pa.Table.from_pylist(list(self._label_rows(index)), schema=_LABEL_TABLE)
        return table.sort_by([("image_id", "ascending"), ("instance", "ascending")])

    def _label_rows(self, index: pa.Table) -> Iterator[dict[str, Any]]:
        shard, labels = "", []
        for place in index.sort_by([("shard", "ascending"), ("row_group", "ascending")]).to_pylist():
            if place["shard"] != shard:
                shard = place["shard"]
                labels = self._labels_of_shard(shard)
            for number, label in enumerate(labels[place["row_group"]], start=1):
                yield {name: place[name] for name in ("image_id", "source", "split")} | {"instance": number} | label

    def _labels_of_shard(self, shard: str) -> list[list[dict[str, Any]]]:
        with self._explaining(shard), self._store.open_random(shard) as source:
            return pq.ParquetFile(source).read(columns=["labels"]).column("labels").to_pylist()

    @contextmanager
    def _explaining(self, shard: str) -> Generator[None]:
        try:
            yield
        except (pa.ArrowException, ValueError, OSError) as error:
            raise ValueError(
                f"{self._store.url}/{shard} cannot be read ({error}). Copy or import the data set again."
            ) from error


_LABEL_TABLE = pa.schema(
    [
        ("image_id", pa.string()),
        ("source", pa.string()),
        ("split", pa.string()),
        ("instance", pa.int32()),
        ("cell_types", pa.list_(pa.string())),
        ("origin_kind", pa.string()),
        ("origin_by", pa.string()),
        ("origin_probability", pa.float64()),
    ]
)
