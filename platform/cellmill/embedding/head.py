"""A type head on embeddings: standardise, one linear layer, softmax. Plain numbers, kept as safetensors.

Consumes vectors (n, D); produces probabilities (n, C). It is fitted by `cellmill_training.refit`; to ask it nothing but
this file is needed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from cellmill.store.embeddings import EmbeddedBy
from cellmill.store.layout import embeddings_key
from cellmill.store.objects import ObjectStore
from cellmill_schemas.cells import DECIMALS
from cellmill_schemas.ontology import Ontology
from cellmill_schemas.retyped import retyped_schema

__all__ = ["TypeHead", "read_vectors", "retyped_tables"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TypeHead:
    """C classes on D dimensions."""

    mean: Floats  # (D,)
    deviation: Floats  # (D,), more than 0
    weight: Floats  # (C, D), of standardised vectors
    bias: Floats  # (C,)

    def __post_init__(self) -> None:
        num_classes, num_dimensions = self.weight.shape
        shapes = (self.mean.shape, self.deviation.shape, self.bias.shape)
        if shapes != ((num_dimensions,), (num_dimensions,), (num_classes,)) or (self.deviation <= 0).any():
            raise ValueError(f"A type head of {self.weight.shape} needs mean, deviation and bias to fit, got {shapes}.")

    def probabilities(self, vectors: npt.NDArray[np.floating]) -> Floats:
        """Of each class, (n, C), for vectors (n, D)."""
        standardised = (vectors.astype(np.float64) - self.mean) / self.deviation
        logits = standardised @ self.weight.T + self.bias
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        return shares / shares.sum(axis=1, keepdims=True)

    def to_bytes(self) -> bytes:
        """As safetensors."""
        names = ("mean", "deviation", "weight", "bias")
        return save_arrays({name: np.ascontiguousarray(getattr(self, name)) for name in names})

    @staticmethod
    def from_bytes(data: bytes) -> "TypeHead":
        """Parse what `to_bytes` made.

        Raises:
            ValueError: when the tensors are no head's.
        """
        arrays = load_arrays(data)
        try:
            return TypeHead(**{name: array.astype(np.float64) for name, array in arrays.items()})
        except TypeError as error:
            raise ValueError(f"A type head is mean, deviation, weight and bias, got {sorted(arrays)}.") from error


def read_vectors(
    store: ObjectStore, embedded_by: EmbeddedBy, slide_id: str
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float16]]]:
    """Ids (n,) and vectors (n, D) of a slide's cells, a row group at a time, in the order of their ids."""
    with store.open_random(embeddings_key(embedded_by, slide_id)) as file, pq.ParquetFile(file) as table:
        for number in range(table.num_row_groups):
            group = table.read_row_group(number)
            vectors = group.column("embedding").combine_chunks()
            flat = vectors.flatten().to_numpy(zero_copy_only=False)
            yield group.column("cell_id").to_numpy(), flat.reshape(group.num_rows, -1)


def retyped_tables(
    head: TypeHead, ontology: Ontology, pieces: Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float16]]]
) -> Iterator[pa.Table]:
    """What the head says of a slide's cells: tables of `retyped_schema`, one for each piece."""
    schema, digits = retyped_schema(ontology), DECIMALS["type_prob"]
    names = pa.array(ontology.names, pa.string())
    for cell_ids, vectors in pieces:
        prob = head.probabilities(vectors)
        columns = {
            "cell_id": pa.array(cell_ids),
            "retyped_type": pa.DictionaryArray.from_arrays(pa.array(prob.argmax(axis=1).astype(np.int8)), names),
            "retyped_prob": pa.FixedSizeListArray.from_arrays(
                pa.array(prob.round(digits).astype(np.float32).ravel()), len(ontology)
            ),
            "retyped_confidence": pa.array(prob.max(axis=1).round(digits).astype(np.float32)),
        }
        yield pa.table([columns[name].cast(schema.field(name).type) for name in schema.names], schema=schema)
