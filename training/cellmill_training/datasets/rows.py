"""A labelled image as one Arrow row and back, without loss, and the hash of its content.

The hash is over pixels, instances, mask and labels, never over compressed bytes: it is the same whatever library wrote
the row, and every read is checked against it.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellmill_schemas.datasets import IMAGE_SCHEMA
from cellmill_schemas.ontology import Ontology
from cellmill_training.datasets.labelled_image import CellLabel, LabelledImage, LabelOrigin, ordered_types

__all__ = ["decode_row", "encode_row", "image_digest", "table_of_row", "with_canonical_types"]


def with_canonical_types(image: LabelledImage, ontology: Ontology) -> tuple[CellLabel, ...]:
    """The image's labels with canonical class names in the ontology's order.

    Raises:
        ValueError: when a class is not in the ontology, naming image and instance.
    """
    labels: list[CellLabel] = []
    for number, label in enumerate(image.labels, start=1):
        try:
            labels.append(CellLabel(ordered_types(label.cell_types, ontology), label.origin))
        except KeyError as error:
            raise ValueError(
                f"Image {image.image_id!r} of {image.source!r}, instance {number}: {error.args[0]} Map the labels to "
                "that ontology, or write the data set with the ontology they are in."
            ) from error
    return tuple(labels)


def image_digest(image: LabelledImage, labels: tuple[CellLabel, ...]) -> str:
    """SHA-256 of everything the image holds, with `labels` in canonical names."""
    about: list[Any] = [
        [image.image_id, image.source, image.tissue, image.split_group, image.fold, float(image.mpp)],
        list(image.instances.shape),
        [[label.cell_types, label.origin.kind, label.origin.by, _probability(label.origin)] for label in labels],
    ]
    sha256 = hashlib.sha256(json.dumps(about, ensure_ascii=True, separators=(",", ":")).encode())
    sha256.update(np.ascontiguousarray(image.image).data)
    sha256.update(np.ascontiguousarray(image.instances, dtype="<i4").data)
    sha256.update(np.packbits(image.unknown).data)
    return sha256.hexdigest()


def encode_row(image: LabelledImage, ontology: Ontology) -> dict[str, Any]:
    """The image as a row of `IMAGE_SCHEMA`.

    Raises:
        ValueError: when a label's class is not in the ontology.
    """
    labels = with_canonical_types(image, ontology)
    height, width = image.instances.shape
    written, png = cv2.imencode(".png", cv2.cvtColor(image.image, cv2.COLOR_RGB2BGR))
    assert written
    return {
        **_about(image),
        "height_px": height,
        "width_px": width,
        "image_png": png.tobytes(),
        "instances": np.ascontiguousarray(image.instances, dtype="<i4").tobytes(),
        "unknown": np.packbits(image.unknown).tobytes(),
        "labels": [
            {
                "cell_types": list(label.cell_types),
                "origin_kind": label.origin.kind,
                "origin_by": label.origin.by,
                "origin_probability": _probability(label.origin),
            }
            for label in labels
        ],
        "digest": image_digest(image, labels),
    }


def table_of_row(row: Mapping[str, Any]) -> pa.Table:
    """One row as a table of `IMAGE_SCHEMA`."""
    return pa.Table.from_pylist([dict(row)], schema=IMAGE_SCHEMA)


def decode_row(row: Mapping[str, Any]) -> LabelledImage:
    """The image of a row, as a shard, `LabelledDataset.to_ray` or polars gives it.

    Raises:
        ValueError: when the row is damaged, naming the image.
    """
    image_id, shape = str(row["image_id"]), (int(row["height_px"]), int(row["width_px"]))
    try:
        image = LabelledImage(
            image_id=image_id,
            source=str(row["source"]),
            tissue=str(row["tissue"]),
            split_group=str(row["split_group"]),
            fold=str(row["fold"]),
            mpp=float(row["mpp"]),
            image=_pixels(bytes(row["image_png"])),
            instances=np.frombuffer(row["instances"], "<i4").reshape(shape).astype(np.int32),
            labels=tuple(_label(label) for label in row["labels"]),
            unknown=np.unpackbits(np.frombuffer(row["unknown"], np.uint8), count=shape[0] * shape[1])
            .reshape(shape)
            .astype(np.bool_),
        )
    except ValueError as error:
        raise ValueError(f"Image {image_id!r} is damaged: {error}") from error
    if image_digest(image, image.labels) != row["digest"]:
        raise ValueError(f"Image {image_id!r} is damaged: its content is not what its digest {row['digest']} says.")
    return image


def _about(image: LabelledImage) -> dict[str, Any]:
    return {
        "image_id": image.image_id,
        "source": image.source,
        "tissue": image.tissue,
        "split_group": image.split_group,
        "fold": image.fold,
        "mpp": float(image.mpp),
    }


def _pixels(png: bytes) -> npt.NDArray[np.uint8]:
    decoded = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR) if png else None
    if decoded is None:
        raise ValueError("its PNG cannot be decoded")
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB).astype(np.uint8)


def _probability(origin: LabelOrigin) -> float | None:
    """Always a float: 1 and 1.0 are one content."""
    return None if origin.probability is None else float(origin.probability)


def _label(record: Mapping[str, Any]) -> CellLabel:
    probability = record["origin_probability"]
    origin = LabelOrigin(
        record["origin_kind"], record["origin_by"], None if probability is None else float(probability)
    )
    return CellLabel(tuple(str(name) for name in record["cell_types"]), origin)
