"""What was added to finished slides by later jobs: embeddings, and the answers of type heads that were fitted on them.

In: the statuses of a cell set's slides. Out: findings. The list of digests that a commit writes cannot hold what comes
later; each addition has a sealed JSON record with the SHA-256 of its tables, which is what makes it count as there.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
import pyarrow.parquet as pq

from cellmill.store.embeddings import EmbeddingRecord, parse_embedding_record
from cellmill.store.layout import EMBEDDINGS_FOLDER, RETYPED_FOLDER, cells_key, is_safe_id, retyped_key
from cellmill.store.objects import ObjectStore
from cellmill.store.retyped import HEAD_FILE, WEIGHTS_FILE, parse_head_record
from cellmill.verify.findings import FindingKind, Findings
from cellmill.verify.listing import keys_below
from cellmill.verify.sealed import read_sealed
from cellmill_schemas.slides import SlideStatus

__all__ = ["check_added"]

_PIECE_BYTES = 8 << 20


def check_added(
    store: ObjectStore, statuses: Mapping[str, SlideStatus], findings: Findings, *, with_content: bool
) -> None:
    """Check `embeddings/` and `retyped/`.

    Args:
        store: the cell set's storage.
        statuses: of the slides whose status can be read, by slide id.
        findings: takes what is wrong.
        with_content: whether to compare ids with those of the cell tables.
    """
    check = _Check(store, statuses, findings)
    check.embeddings(with_content=with_content)
    check.retyped()


class _Check:
    def __init__(self, store: ObjectStore, statuses: Mapping[str, SlideStatus], findings: Findings) -> None:
        self.store, self.statuses, self.findings = store, statuses, findings

    def add(self, kind: FindingKind, key: str, says: str, *, slide_id: str = "") -> None:
        self.findings.add(kind, key, says, slide_id=slide_id)

    # -------------------------------------------------------------------------------------------- embeddings

    def embeddings(self, *, with_content: bool) -> None:
        keys = keys_below(self.store, EMBEDDINGS_FOLDER)
        for key in keys:
            folder, _, name = key.removeprefix(f"{EMBEDDINGS_FOLDER}/").partition("/")
            slide_id, _, suffix = name.rpartition(".")
            if folder not in ("student", "teacher") or suffix not in ("json", "parquet") or "/" in name:
                self.add("stray", key, "no embeddings have such a name")
            elif not self._belongs(key, slide_id):
                continue
            elif suffix == "parquet" and f"{key.removesuffix('parquet')}json" not in keys:
                self.add("unfinished", key, "no record says what these vectors are", slide_id=slide_id)
            elif suffix == "json":
                self._embedding(key, slide_id, folder, with_content=with_content)

    def _embedding(self, key: str, slide_id: str, embedded_by: str, *, with_content: bool) -> None:
        data, is_intact = read_sealed(self.store, key, self.findings, slide_id=slide_id)
        if not is_intact:
            return
        try:
            record = parse_embedding_record(data)
        except ValueError:
            self.add("damaged", key, "it is no record of embeddings", slide_id=slide_id)
            return
        table_key = f"{key.removesuffix('json')}parquet"
        if (record.slide_id, record.embedded_by) != (slide_id, embedded_by):
            self.add("contradiction", key, f"it is the record of {record.embedded_by}/{record.slide_id}")
        elif record.cells_sha256 != self.statuses[slide_id].cells_sha256:
            says = "its vectors are of an earlier table of the slide's cells; store them again"
            self.add("contradiction", key, says, slide_id=slide_id)
        elif self._is_intact(table_key, record.table_sha256, slide_id) and with_content:
            self._content(table_key, record)

    def _content(self, key: str, record: EmbeddingRecord) -> None:
        with self.store.open_random(key) as file:
            table = pq.read_table(file, columns=["cell_id"])
            kind = pq.read_schema(file).field("embedding").type
        says = ""
        if (table.num_rows, kind.list_size) != (record.num_cells, record.num_dimensions):
            says = f"it holds {table.num_rows} vectors of {kind.list_size}, its record says otherwise"
        elif self.store.exists(cells_key(record.slide_id)):
            with self.store.open_random(cells_key(record.slide_id)) as file:
                ids = pq.read_table(file, columns=["cell_id"]).column("cell_id")
            absent = int((~np.isin(table.column("cell_id").to_numpy(), ids.to_numpy())).sum())
            if absent or (not record.where and table.num_rows != len(ids)):
                says = (
                    f"{absent} of its {table.num_rows} cells are not among the table's {len(ids)}, or some are missing"
                )
        if says:
            self.add("contradiction", key, says, slide_id=record.slide_id)

    # ----------------------------------------------------------------------------------------------- retyped

    def retyped(self) -> None:
        for name in self.store.list_names(RETYPED_FOLDER):
            if not is_safe_id(name):
                self.add("stray", f"{RETYPED_FOLDER}/{name}", "no type head has such a name")
                continue
            self._head(name, keys_below(self.store, f"{RETYPED_FOLDER}/{name}"))

    def _head(self, name: str, keys: list[str]) -> None:
        folder = f"{RETYPED_FOLDER}/{name}"
        head_key = f"{folder}/{HEAD_FILE}"
        if head_key not in keys:
            self.add("unfinished", folder, f"{HEAD_FILE} is missing: a fit was cut short; fit it again")
            return
        data, is_intact = read_sealed(self.store, head_key, self.findings)
        if not is_intact:
            return
        try:
            record = parse_head_record(data)
        except ValueError:
            self.add("damaged", head_key, "it is no record of a type head")
            return
        wanted = {f"{folder}/{WEIGHTS_FILE}": ("", record.weights_sha256)}
        for slide_id, sha256 in record.tables.items():
            status = self.statuses.get(slide_id)
            if status is None or status.outcome != "forgotten":
                wanted[retyped_key(name, slide_id)] = (slide_id, sha256)
        for key in keys:
            slide_id = key.removeprefix(f"{folder}/").removesuffix(".parquet")
            if key not in wanted and key != head_key and self._belongs(key, slide_id):
                self.add("stray", key, f"{HEAD_FILE} does not list it")
        for key, (slide_id, sha256) in wanted.items():
            if key not in keys:
                self.add("missing", key, f"{HEAD_FILE} lists it", slide_id=slide_id)
            else:
                self._is_intact(key, sha256, slide_id)

    # ------------------------------------------------------------------------------------------------- bytes

    def _belongs(self, key: str, slide_id: str) -> bool:
        """Whether the slide is there to have it."""
        status = self.statuses.get(slide_id)
        if status is None:
            self.add("stray", key, "it belongs to no slide that is here")
        elif status.outcome != "done":
            self.add("stray", key, f"the slide is {status.outcome} and should not have it", slide_id=slide_id)
        return status is not None and status.outcome == "done"

    def _is_intact(self, key: str, sha256: str, slide_id: str) -> bool:
        digest, size = hashlib.sha256(), 0
        try:
            with self.store.open_random(key) as file:
                while piece := file.read(_PIECE_BYTES):
                    digest.update(piece)
                    size += len(piece)
        except FileNotFoundError:
            self.add("missing", key, "its record says that it was written, and it is not there", slide_id=slide_id)
            return False
        self.findings.count(objects=1, num_bytes=size)
        if digest.hexdigest() != sha256:
            self.add("damaged", key, f"its {size} bytes are not those that were written", slide_id=slide_id)
        return digest.hexdigest() == sha256
