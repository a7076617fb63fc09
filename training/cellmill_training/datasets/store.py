"""The one store of labelled images: a folder or bucket that many writers may append to and Ray Data streams.

    <folder>/dataset.json             name and ontology
    <folder>/shards/<name>.parquet    pixels and labels, one row and one row group an image (`IMAGE_SCHEMA`)
    <folder>/index/<number>.parquet   one file an append: its images, where they are, their split and digest

Parquet and not zarr: labels with their lineage are records of varying length, an image of any size is one value, and
polars or DuckDB count labels without this code. A row group an image makes reading one image one short read, for about
2 KB a row. An append becomes visible with its index file, which is created last, whole, and by one writer; shards of a
writer that was cut off are in no index and so do not exist.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from cellmill.store.objects import ObjectStore
from cellmill_schemas.ontology import Ontology
from cellmill_training.datasets.index import append_to_index, index_digest, read_index
from cellmill_training.datasets.labelled_image import LabelledImage
from cellmill_training.datasets.lineage import with_origins
from cellmill_training.datasets.shards import ShardReader, write_shards
from cellmill_training.datasets.splitting import Split, SplitPlan

if TYPE_CHECKING:
    import ray.data

__all__ = ["LabelledDataset", "append_images", "open_dataset", "write_dataset"]

_ABOUT = "dataset.json"
_IMAGES_A_BLOCK = 16


def write_dataset(
    folder: str | Path,
    images: Iterable[LabelledImage],
    *,
    ontology: Ontology,
    splits: Mapping[str, Split] | SplitPlan | None = None,
    name: str = "",
) -> "LabelledDataset":
    """Write a new data set; the images are taken one at a time.

    Args:
        folder: folder or fsspec URL, without a data set.
        images: with ids that differ.
        ontology: every label's classes are in it.
        splits: split group -> split, or a plan made when all images are known. Default: `SplitPlan()`.
        name: what the data set is called. Default: the folder's name.

    Raises:
        ValueError: when there is a data set already, an id comes twice, a label's class or an image's group is unknown,
            or there is no image. Nothing of it is visible then.
        OutputError: when the storage refuses.
    """
    store = ObjectStore(folder)
    if read_index(store, ontology).num_rows:
        raise ValueError(
            f"{store.url} holds a data set already. Choose another folder, delete it first, or use append_images."
        )
    name = name or store.url.rstrip("/").rsplit("/", 1)[-1]
    about = {"format": "cellmill-dataset", "name": name, "ontology": ontology.to_json()}
    store.put(_ABOUT, json.dumps(about, indent=2).encode())
    return _append(store, images, ontology=ontology, splits=splits)


def append_images(
    folder: str | Path, images: Iterable[LabelledImage], *, splits: Mapping[str, Split] | SplitPlan | None = None
) -> "LabelledDataset":
    """Add images to a data set; several writers may do so at once.

    A group that the data set has keeps its split; `splits` is for the new ones.

    Raises:
        ValueError: as `write_dataset`; also when `splits` moves a group.
    """
    dataset = open_dataset(folder)
    return _append(dataset.store, images, ontology=dataset.ontology, splits=splits)


def open_dataset(folder: str | Path) -> "LabelledDataset":
    """Open a data set by reading its index.

    Raises:
        ValueError: when there is none, or it is damaged.
    """
    store = ObjectStore(folder)
    try:
        about = json.loads(store.get(_ABOUT))
        if about.get("format") != "cellmill-dataset":
            raise ValueError("its format is not cellmill-dataset")
        name, ontology = str(about["name"]), Ontology.from_json(about["ontology"])
    except FileNotFoundError as error:
        raise ValueError(
            f"{store.url} holds no data set ({_ABOUT} is missing); import-dataset or write_dataset makes one."
        ) from error
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{store.url}/{_ABOUT} does not describe a data set: {error}.") from error
    index = read_index(store, ontology)
    if not index.num_rows:
        raise ValueError(f"{store.url} has no image: its writer was cut off. Write the data set again.")
    return LabelledDataset(store, name=name, ontology=ontology, index=index)


class LabelledDataset:
    """A data set as it was when opened; images come in the order of their ids. Pickles as its URL."""

    def __init__(self, store: ObjectStore, *, name: str, ontology: Ontology, index: pa.Table) -> None:
        self.store = store
        self.name = name
        self.ontology = ontology
        self.index = index
        """`INDEX_SCHEMA`, sorted by image id."""
        self._rows = {str(row["image_id"]): row for row in index.to_pylist()}
        self._shards = ShardReader(store)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return open_dataset, (self.store.url,)

    def __len__(self) -> int:
        return self.index.num_rows

    @property
    def digest(self) -> str:
        """SHA-256 of ontology, images, labels and splits; not of name, shards or the order of appends."""
        return index_digest(self.index, self.ontology)

    def image_ids(self, split: Split | None = None) -> tuple[str, ...]:
        """Ids of a split's images, or of all."""
        return tuple(name for name, row in self._rows.items() if split in (None, row["split"]))

    def split_of(self, image_id: str) -> Split:
        """The split of an image.

        Raises:
            KeyError: when there is no such image.
        """
        return cast(Split, self._row(image_id)["split"])

    def splits(self) -> dict[str, Split]:
        """Split of each group."""
        return {str(row["split_group"]): cast(Split, row["split"]) for row in self._rows.values()}

    def read(self, image_id: str) -> LabelledImage:
        """One image, without reading others.

        Raises:
            KeyError: when there is no such image.
            ValueError: when its shard is damaged, naming the file.
        """
        row = self._row(image_id)
        return self._shards.read(str(row["shard"]), int(row["row_group"]))

    def images(self, split: Split | None = None, origins: Collection[str] | None = None) -> Iterator[LabelledImage]:
        """Images of a split, one at a time; with `origins` only labels from there count, see `with_origins`."""
        for image_id in self.image_ids(split):
            image = self.read(image_id)
            yield image if origins is None else with_origins(image, origins)

    def labels(self) -> pa.Table:
        """One row a nucleus, without reading pixels: image_id, source, split, instance and the columns of a label."""
        return self._shards.labels(self.index)

    def to_ray(self, split: Split | None = None) -> "ray.data.Dataset":
        """Rows of `IMAGE_SCHEMA` as a Ray dataset that reads while it is consumed; `decode_row` makes images of them.

        Rows stay compressed on their way through Ray's object store: decode where you need them,
        `dataset.to_ray("train").map(lambda row: crops_of(decode_row(row)))`.
        """
        import ray.data

        wanted = [row for row in self._rows.values() if split in (None, row["split"])]
        if not wanted:
            raise ValueError(f"{self.store.url} has no image in split {split!r}.")
        places = [{"shard": row["shard"], "row_group": row["row_group"]} for row in wanted]
        blocks = [
            pa.Table.from_pylist(places[start : start + _IMAGES_A_BLOCK])
            for start in range(0, len(places), _IMAGES_A_BLOCK)
        ]
        return ray.data.from_arrow(blocks).map_batches(
            partial(_rows_at, url=self.store.url),  # pyright: ignore[reportArgumentType] - its stub knows no Arrow
            batch_format="pyarrow",
            batch_size=None,
        )

    def _row(self, image_id: str) -> dict[str, Any]:
        try:
            return self._rows[image_id]
        except KeyError:
            raise KeyError(f"{self.store.url} has no image {image_id!r}; image_ids() lists those it has.") from None


def _append(
    store: ObjectStore,
    images: Iterable[LabelledImage],
    *,
    ontology: Ontology,
    splits: Mapping[str, Split] | SplitPlan | None,
) -> "LabelledDataset":
    plan = SplitPlan() if splits is None else splits
    rows = write_shards(store, images, ontology=ontology, splits=None if isinstance(plan, SplitPlan) else plan)
    if not rows:
        raise ValueError(f"There is no image to write to {store.url}.")
    append_to_index(store, rows, ontology=ontology, splits=plan)
    return open_dataset(store.url)


def _rows_at(places: pa.Table, *, url: str) -> Iterator[pa.Table]:
    """Runs in Ray's workers: a table of one row for each place."""
    shards = ShardReader(ObjectStore(url))
    for place in places.to_pylist():
        yield shards.table(place["shard"], place["row_group"])
