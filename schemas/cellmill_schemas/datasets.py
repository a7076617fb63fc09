"""A labelled data set on disk: exact column names and types.

In a shard one row is one image with its labels; in an index one row says where an image is, which split it is in and
what its content hashes to. The split is the index's alone, because it may be decided after the pixels were written.
"""

import pyarrow as pa

__all__ = ["IMAGE_SCHEMA", "INDEX_SCHEMA", "LABEL_TYPE"]


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


LABEL_TYPE = pa.struct(
    [
        _required("cell_types", pa.list_(_required("item", pa.string()))),
        _required("origin_kind", pa.string()),
        _required("origin_by", pa.string()),
        pa.field("origin_probability", pa.float64()),
    ]
)
"""One nucleus: the classes it may be (canonical names in ontology order; none: unknown) and who says so, how surely.
`origin_kind` is one of dataset, relabel, weak, model, annotator, consensus."""

_ABOUT = [
    _required("image_id", pa.string()),
    _required("source", pa.string()),
    _required("tissue", pa.string()),
    _required("split_group", pa.string()),
    _required("fold", pa.string()),
    _required("mpp", pa.float64()),
    _required("height_px", pa.int32()),
    _required("width_px", pa.int32()),
]

IMAGE_SCHEMA = pa.schema(
    [
        *_ABOUT,
        _required("image_png", pa.binary()),
        _required("instances", pa.binary()),
        _required("unknown", pa.binary()),
        _required("labels", pa.list_(_required("item", LABEL_TYPE))),
        _required("digest", pa.string()),
    ]
)
"""`image_png`: the pixels as an RGB PNG, which any viewer opens. `instances`: int32, little-endian, row by row, 0
background, k for `labels[k - 1]`. `unknown`: the mask's bits, row by row, eight a byte, first pixel highest. `digest`:
SHA-256 of the content (pixels, not their compression)."""

INDEX_SCHEMA = pa.schema(
    [
        *_ABOUT,
        _required("split", pa.string()),
        _required("num_cells", pa.int32()),
        _required("digest", pa.string()),
        _required("shard", pa.string()),
        _required("row_group", pa.int32()),
    ]
)
"""`shard` is the key below the data set's folder, `row_group` the image's row group in it."""
