"""Proof that a cell set is whole, or a list of exactly what is not.

In: the URL of a cell set. Out: a `VerifyReport`. Layers, each resting on the one before: which objects there are
(`listing`), whether each is byte for byte what was committed (`slide`), what table (`table`) and mask (`mask`) say, and
whether they, the statuses and `slides.parquet` agree (`cellset`).
"""

from cellmill.verify.cellset import verify_cellset
from cellmill.verify.findings import Finding, VerifyReport

__all__ = ["Finding", "VerifyReport", "verify_cellset"]
